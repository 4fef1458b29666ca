"""What the pages about artefacts have in common: tables, lists of what was not used, settings, and the frame around them. All of it is escaped."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clara.storage.artefact import atomic_write
from clara.storage.paths import join
from pipelines.job.pictures import number

NAME = "summary.html"
"""A page lies in its artefact and is no part of it."""

NUM_BARS = 40
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top}td.n{text-align:right}"
    "svg{width:100%;font-size:11px}.bar{fill:#4a7fb5}.line{fill:none;stroke:#4a7fb5;stroke-width:2}.axis{stroke:#888}"
    "pre{background:#f4f4f4;padding:1em;overflow:auto}h2{margin-top:2em}blockquote{margin:1em 0;padding-left:1em;border-left:3px solid #ccc}"
)


def _cell(value: Any) -> str:
    figure = isinstance(value, int | float) and not isinstance(value, bool)
    return f"<td{' class=n' if figure else ''}>{number(value) if figure else html.escape(str(value))}</td>"


def table(rows: Iterable[Sequence[Any]], heads: Sequence[str] = ()) -> str:
    """Rows of cells, figures to the right, under their heads where there are some."""
    head = f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in heads)}</tr>" if heads else ""
    lines = ("".join(map(_cell, row)) for row in rows)
    return f"<table>{head}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def grouped(counts: Sequence[int], unit: str) -> tuple[list[int], list[str]]:
    """A histogram's counts in at most `NUM_BARS` bars, each labelled with its range."""
    width = max(1, math.ceil(len(counts) / NUM_BARS))
    starts = range(0, len(counts), width)
    labels = [f"{start}" if width == 1 else f"{start} to {start + width - 1}" for start in starts]
    return [sum(counts[start : start + width]) for start in starts], [f"{label} {unit}" for label in labels]


def records(counts: Mapping[str, Any]) -> str:
    """All counts of a manifest, and what was not used, by reason."""
    reasons = [
        (f"{what}: {reason}", count)
        for what, key in (("failed", "dead letters by reason"), ("dropped", "dropped by reason"))
        for reason, count in counts.get(key, {}).items()
    ]
    plain = table((name, value) for name, value in counts.items() if not isinstance(value, dict))
    told = f"<h3>Not used, by reason</h3>{table(reasons)}" if reasons else "<p>Every record was used.</p>"
    return f"<h2>Records</h2>{plain}{told}"


def settings(made: Mapping[str, Any]) -> str:
    """What made an artefact, as its manifest tells: the recipe, and versions."""
    recipe = html.escape(json.dumps(made["recipe"], indent=1, ensure_ascii=False))
    return f"<h2>Settings</h2><pre>{recipe}</pre><h2>Versions</h2>{table(made['versions'].items())}"


def write(name: str, text: str) -> str:
    """Write a page into the artefact of that name. Returns its path or URL."""
    path = join(name, NAME)
    atomic_write(path, text)
    return path


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page as HTML, complete in itself."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = f"<h1>{html.escape(title)}</h1>{''.join(parts)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
