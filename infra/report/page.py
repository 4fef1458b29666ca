"""A report as text for a terminal, and as one HTML page that needs no other file."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from infra.plan.text import size
from infra.report.advice import RULE
from training.evaluation.tables import Table, as_text

_MS = 1000


def _interval(figure: Mapping[str, float], value: str = "value") -> str:
    sign = "+" if value == "difference" else ""
    return f"{figure[value]:{sign}.3f} [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"


def quality_table(report: Mapping[str, Any]) -> Table:
    """A line for each way: the mean of each measure with its interval."""
    heads = report["measures"]
    lines = [
        [way["title"], *(_interval(way["quality"][m]) if m in way["quality"] else "" for m in heads.values())]
        for way in report["ways"].values()
    ]
    return ["", *heads], lines


def difference_table(report: Mapping[str, Any]) -> Table:
    """A line for each other way: this system minus it, by the deciding measure, likelihood and recall."""
    heads = dict.fromkeys([report["recommendation"]["measure"], "LL", "R@5"])
    shown = {head: report["measures"][head] for head in heads if head in report["measures"]}
    lines = [
        [
            report["ways"][label]["title"],
            *(f"{of[m]['verdict']} {_interval(of[m], 'difference')}" if m in of else "" for m in shown.values()),
        ]
        for label, of in report["differences"].items()
    ]
    return ["", *shown], lines


def time_table(report: Mapping[str, Any]) -> Table:
    """A line for each way: milliseconds, ratio to this system, tokens read, bytes needed."""
    lines = []
    for way in report["ways"].values():
        seconds, ratio = way["seconds"], way["ratio_to_system"]
        lines.append(
            [
                way["title"],
                f"{_MS * seconds['search']['median_seconds']:.1f}",
                f"{_MS * seconds['answer']['median_seconds']:.0f}",
                f"{_MS * seconds['answer']['p95_seconds']:.0f}",
                f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "1",
                f"{way['tokens_read']:.0f}",
                size(way["bytes"]),
            ]
        )
    return ["", "search ms", "answer ms", "95th pct", "times this system", "tokens read", "needs"], lines


def byte_table(report: Mapping[str, Any]) -> Table:
    """A line for each part."""
    return ["part", "bytes"], [[name, size(num)] for name, num in report["bytes"].items()]


def sections(report: Mapping[str, Any]) -> list[tuple[str, str, Table | None]]:
    """Heading, text and table of each part of the page."""
    asked, settings, advice = report["questions"], report["settings"], report["recommendation"]
    splits = ", ".join(f"{number} of split {name or 'none'}" for name, number in asked["splits"].items())
    quality = f"Means over {asked['count']} questions ({splits}) with 95 % bootstrap intervals; " + (
        f"{settings['num_selected']} rows read. LL: log-likelihood of the answer in nats."
    )
    timed = (
        f"Median and 95th percentile over {asked['timed']} questions, one at a time, all ways in one run on "
        f"{report['hardware']}; answers of up to {settings['max_new_tokens']} tokens. Needs: bytes of the parts that a "
        "way reads, in RAM where a part is not stored."
    )
    return [
        ("Recommendation", "\n".join([f"{advice['title']}.", *advice["reasons"]]), None),
        ("Quality", quality, quality_table(report)),
        ("This system minus the other, by question", "", difference_table(report)),
        ("Time and bytes", timed, time_table(report)),
        (f"Bytes, {report['rows']:,} rows", "", byte_table(report)),
        ("Rule", RULE, None),
    ]


def as_page(report: Mapping[str, Any]) -> str:
    """The report as text."""
    parts: list[str] = []
    for heading, text, table in sections(report):
        parts += [heading.upper(), *([text] if text else []), *([as_text(table)] if table else []), ""]
    return "\n".join(parts)


_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Report</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { border: 1px solid #ccc; padding: .3em .6em; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
</style>
<h1>Report</h1>
{% for heading, text, table in sections %}
<h2>{{ heading }}</h2>
{% for line in text.splitlines() %}<p>{{ line }}</p>
{% endfor %}
{% if table %}
<table><tr>{% for c in table[0] %}<th>{{ c }}</th>{% endfor %}</tr>
{% for line in table[1] %}<tr>{% for c in line %}<td>{{ c }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endif %}
{% endfor %}
</html>
""")


def as_html(of: Sequence[tuple[str, str, Table | None]]) -> str:
    """The page of `sections`."""
    return _PAGE.render(sections=of)
