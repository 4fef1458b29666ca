"""The evaluation's files: report.json, per_question.parquet, report.md, report.html, pictures."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from clara.intervals import PairedTest
from clara.storage.folders import atomic_write
from training.evaluation.alignment import Moved, moved_documents
from training.evaluation.files import PER_QUESTION, REPORT
from training.evaluation.measures import Figure, Row, differences, figures
from training.evaluation.overlap import Overlap, overlaps
from training.evaluation.pictures import likelihood_bars, recall_curves, utility_points
from training.evaluation.tables import LEGEND, PULLED_UP, PUSHED_DOWN, Table, as_markdown, count_table, tables_of


@dataclass(frozen=True)
class Evaluation:
    """Everything measured: rows of every system, and what was compared with what.

    Attributes:
        rows: one for each system and question.
        pairs: (challenger, base) systems whose paired difference is shown.
        counts: questions by split, and what could not be measured.
        names: the systems that were given, in their order; the first and the last are before and after.
        seed: of intervals and tests.
    """

    rows: Sequence[Row]
    pairs: Sequence[tuple[str, str]]
    counts: Mapping[str, Any]
    names: Sequence[str] = ()
    seed: int = 0

    def splits(self) -> list[str]:
        """Splits in the order of the rows."""
        return list(dict.fromkeys(row["split"] for row in self.rows))

    def of(self, split: str) -> dict[str, list[Row]]:
        """Rows of a split by system."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row["split"] == split:
                found.setdefault(row["system"], []).append(row)
        return found

    def figures(self) -> dict[str, dict[str, dict[str, Figure]]]:
        """Split → system → measure → figure."""
        return {
            split: {system: figures(rows, self.seed) for system, rows in self.of(split).items()}
            for split in self.splits()
        }

    def kinds(self, split: str) -> dict[str, dict[str, dict[str, Figure]]]:
        """Kind of question → system → measure → figure; empty where all questions of the split are of one kind."""
        rows = self.of(split)
        kinds = dict.fromkeys(row.get("kind", "") for of in rows.values() for row in of)
        if len(kinds) < 2:
            return {}
        return {
            kind: {
                system: figures([r for r in of if r.get("kind", "") == kind], self.seed) for system, of in rows.items()
            }
            for kind in kinds
        }

    def differences(self) -> dict[str, dict[str, dict[str, PairedTest]]]:
        """Split → "challenger - base" → measure → difference."""
        found = {}
        for split in self.splits():
            rows = self.of(split)
            found[split] = {
                f"{a} - {b}": differences(rows[a], rows[b], self.seed) for a, b in self.pairs if a in rows and b in rows
            }
        return found

    def overlaps(self, split: str) -> dict[str, list[Overlap]]:
        """What each of a pair finds, by "challenger - base"; pairs without a ranking of the index have none."""
        rows = self.of(split)
        found = {f"{a} - {b}": overlaps(rows[a], rows[b]) for a, b in self.pairs if a in rows and b in rows}
        return {pair: of for pair, of in found.items() if of}

    @property
    def movement(self) -> str:
        """The systems that `moved` compares, in words."""
        return f"{self.names[0]} to {self.names[-1]}" if self.names else ""

    def moved(self, split: str) -> dict[str, list[Moved]]:
        """Documents that moved between the first and the last system; empty without alignment or a second system."""
        rows = self.of(split)
        if len(self.names) < 2:
            return {}
        down, up = moved_documents(rows.get(self.names[0], []), rows.get(self.names[-1], []))
        return {where: of for where, of in ((PUSHED_DOWN, down), (PULLED_UP, up)) if of}


def write_report(directory: Path, evaluation: Evaluation) -> list[str]:
    """Write all files of an evaluation but its manifest; returns their names."""
    found, compared = evaluation.figures(), evaluation.differences()
    systems = dict.fromkeys(system for of in found.values() for system in of)
    moved = {split: evaluation.moved(split) for split in found}
    kinds = {split: evaluation.kinds(split) for split in found}
    shared = {split: evaluation.overlaps(split) for split in found}
    report = {
        "systems": {
            s: {split: {m: asdict(f) for m, f in of[s].items()} for split, of in found.items() if s in of}
            for s in systems
        },
        "differences": {
            split: {pair: {m: asdict(d) for m, d in ds.items()} for pair, ds in of.items()}
            for split, of in compared.items()
        },
        "moved": {
            split: {where: [asdict(m) for m in of] for where, of in lists.items()} for split, lists in moved.items()
        },
        "kinds": {
            split: {
                kind: {s: {m: asdict(f) for m, f in own.items()} for s, own in of.items()} for kind, of in by.items()
            }
            for split, by in kinds.items()
            if by
        },
        "overlaps": {split: {pair: [asdict(o) for o in of] for pair, of in by.items()} for split, by in shared.items()},
        "counts": evaluation.counts,
    }
    sections = [
        Section(
            split or "all questions",
            tables_of(
                of,
                compared[split],
                {f"{where} ({evaluation.movement})": m for where, m in moved[split].items()},
                kinds[split],
                shared[split],
            ),
            _pictures(evaluation, split, of),
        )
        for split, of in found.items()
    ]
    pictures = {name: data for section in sections for name, data in section.pictures.items()}
    for name, data in pictures.items():
        atomic_write(directory / name, data)
    atomic_write(directory / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    atomic_write(directory / "report.md", markdown(sections, evaluation.counts))
    atomic_write(directory / "report.html", html(sections, evaluation.counts))
    write_per_question(directory / PER_QUESTION, evaluation.rows)
    return [REPORT, "report.md", "report.html", PER_QUESTION, *pictures]


def _pictures(evaluation: Evaluation, split: str, found: Mapping[str, Mapping[str, Figure]]) -> dict[str, bytes]:
    """PNGs of one split by file name; what nothing was measured for is not drawn."""
    rows, title = evaluation.of(split), split or "all"
    own = {name: rows[name] for name in evaluation.names if name in rows}
    drawn = {
        "recall": recall_curves(rows, title),
        "likelihood": likelihood_bars(found, title),
        "alignment": utility_points(own, title),
    }
    return {f"{kind}-{title}.png": data for kind, data in drawn.items() if data is not None}


def write_per_question(path: Path, rows: Sequence[Row]) -> None:
    """One line for each system and question; measures that a question has not are null."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), sink)
    atomic_write(path, sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class Section:
    """What the report shows of one split: tables under their headings, pictures by file name."""

    title: str
    tables: Mapping[str, Table]
    pictures: Mapping[str, bytes]


def markdown(sections: Sequence[Section], counts: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    parts = ["# Evaluation", LEGEND]
    for section in sections:
        (_, first), *others = section.tables.items()
        parts += [f"## {section.title}", as_markdown(first), *(f"![{p}]({p})" for p in section.pictures)]
        for heading, table in others:
            parts += [f"{heading}:", as_markdown(table)]
    parts += ["## Counts", as_markdown(count_table(counts))]
    return "\n\n".join(parts) + "\n"


_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { border: 1px solid #ccc; padding: .3em .6em; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f6f6f6; }
img { max-width: 100%; }
</style>
{% macro table(t) %}
<table><tr>{% for c in t[0] %}<th>{{ c }}</th>{% endfor %}</tr>
{% for line in t[1] %}<tr>{% for c in line %}<td>{{ c }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endmacro %}
<h1>Evaluation</h1><p>{{ legend }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for heading, content in section.tables.items() %}
{% if not loop.first %}<h3>{{ heading }}</h3>{% endif %}
{{ table(content) }}
{% if loop.first %}{% for name, data in section.pictures.items() %}
<img alt="{{ name }}" src="data:image/png;base64,{{ encoded(data) }}">
{% endfor %}{% endif %}
{% endfor %}
{% endfor %}
<h2>Counts</h2>
{{ table(counts) }}
</html>
""")


def html(sections: Sequence[Section], counts: Mapping[str, Any]) -> str:
    """The report as one page that needs no other file."""
    return _PAGE.render(
        legend=LEGEND,
        sections=sections,
        counts=count_table(counts),
        encoded=lambda data: base64.b64encode(data).decode(),
    )
