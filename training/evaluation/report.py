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

from clara.artefact import atomic_write
from clara.metrics import PairedTest
from training.evaluation.measures import Figure, Row, differences, figures
from training.evaluation.pictures import likelihood_bars, recall_curves

REPORT, PER_QUESTION = "report.json", "per_question.parquet"

TABLE = (
    ("R@1", "index.recall@1"),
    ("R@5", "index.recall@5"),
    ("R@20", "index.recall@20"),
    ("MRR", "index.mrr"),
    ("pool R@1", "pool.recall@1"),
    ("pool R@5", "pool.recall@5"),
    ("pool MRR", "pool.mrr"),
    ("LL index", "index.log_likelihood"),
    ("LL pool", "pool.log_likelihood"),
    ("LL right", "right.log_likelihood"),
    ("LL wrong", "wrong.log_likelihood"),
    ("LL none", "none.log_likelihood"),
    ("right-wrong", "gap.right_minus_wrong"),
    ("EM", "index.exact_match"),
    ("F1", "index.f1"),
    ("cover", "index.substring_match"),
)
"""Columns of the table in reports and on the terminal: heading and measure."""

LEGEND = (
    "R@k and MRR: share of the known right documents among the first k, and mean reciprocal rank, over the whole index and in fixed pools. "
    "LL: log-likelihood of the answer in nats (0 is best), after reading the K documents found in the index or pool, the right one, a wrong one "
    "of the pool, or none. EM, F1, cover: the generated answer after reading what the index gave. Means over questions; in brackets the 95 % "
    "bootstrap interval. `bm25/NAME`: BM25 finds, NAME's generator reads. `text/bm25`: the plain language model reads the raw passages that BM25 found."
)


@dataclass(frozen=True)
class Evaluation:
    """Everything measured: rows of every system, and what was compared with what.

    Attributes:
        rows: one for each system and question.
        pairs: (challenger, base) systems whose paired difference is shown.
        counts: questions by split, and what could not be measured.
        seed: of intervals and tests.
    """

    rows: Sequence[Row]
    pairs: Sequence[tuple[str, str]]
    counts: Mapping[str, Any]
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
        return {split: {system: figures(rows, self.seed) for system, rows in self.of(split).items()} for split in self.splits()}

    def differences(self) -> dict[str, dict[str, dict[str, PairedTest]]]:
        """Split → "challenger - base" → measure → difference."""
        found = {}
        for split in self.splits():
            rows = self.of(split)
            found[split] = {f"{a} - {b}": differences(rows[a], rows[b], self.seed) for a, b in self.pairs if a in rows and b in rows}
        return found


def write_report(directory: Path, evaluation: Evaluation) -> list[str]:
    """Write all files of an evaluation but its manifest; returns their names."""
    found, compared = evaluation.figures(), evaluation.differences()
    systems = dict.fromkeys(system for of in found.values() for system in of)
    report = {
        "systems": {s: {split: {m: asdict(f) for m, f in of[s].items()} for split, of in found.items() if s in of} for s in systems},
        "differences": {split: {pair: {m: asdict(d) for m, d in ds.items()} for pair, ds in of.items()} for split, of in compared.items()},
        "counts": evaluation.counts,
    }
    pictures = {}
    for split, of in found.items():
        pictures[f"recall-{split or 'all'}.png"] = recall_curves(evaluation.of(split), split or "all")
        pictures[f"likelihood-{split or 'all'}.png"] = likelihood_bars(of, split or "all")
    for name, data in pictures.items():
        atomic_write(directory / name, data)
    atomic_write(directory / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    atomic_write(directory / "report.md", markdown(found, compared, evaluation.counts, list(pictures)))
    atomic_write(directory / "report.html", html(found, compared, evaluation.counts, pictures))
    write_per_question(directory / PER_QUESTION, evaluation.rows)
    return [REPORT, "report.md", "report.html", PER_QUESTION, *pictures]


def write_per_question(path: Path, rows: Sequence[Row]) -> None:
    """One line for each system and question; measures that a question has not are null."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), sink)
    atomic_write(path, sink.getvalue().to_pybytes())


def shown(figure: Figure, *, interval: bool) -> str:
    """A figure as text; three digits suit shares and nats alike."""
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]" if interval else f"{figure.value:.3f}"


Table = tuple[list[str], list[list[str]]]


def figure_table(found: Mapping[str, Mapping[str, Figure]], *, interval: bool) -> Table:
    """Heading and lines: a line for each system, a column for each measure that any of them has."""
    columns = [(head, name) for head, name in TABLE if any(name in of for of in found.values())]
    lines = []
    for system, of in found.items():
        largest = max((f.num_questions for f in of.values()), default=0)
        lines.append([system, str(largest), *(shown(of[name], interval=interval) if name in of else "" for _, name in columns)])
    return ["system", "n", *(head for head, _ in columns)], lines


def difference_table(compared: Mapping[str, Mapping[str, PairedTest]]) -> Table:
    """Heading and lines: a line for each pair of systems and measure of the table."""
    lines = []
    for pair, of in compared.items():
        for head, name in TABLE:
            if name in of:
                d = of[name]
                lines.append(
                    [pair, head, f"{d.difference:+.3f}", f"[{d.low:+.3f}, {d.high:+.3f}]", f"{d.p_value:.4f}", str(d.num_questions)]
                )
    return ["pair", "measure", "difference", "95 % interval", "p", "n"], lines


def as_markdown(table: Table) -> str:
    """A table in Markdown."""
    heading, lines = table
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heading, ["---"] * len(heading), *lines))


def as_text(table: Table) -> str:
    """A table for the terminal, columns aligned."""
    heading, lines = table
    widths = [max(len(cells[i]) for cells in (heading, *lines)) for i in range(len(heading))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        for cells in (heading, *lines)
    )


def markdown(
    found: Mapping[str, Mapping[str, Mapping[str, Figure]]],
    compared: Mapping[str, Mapping[str, Mapping[str, PairedTest]]],
    counts: Mapping[str, Any],
    pictures: Sequence[str],
) -> str:
    """The report in Markdown."""
    parts = ["# Evaluation", LEGEND]
    for split, of in found.items():
        parts += [f"## {split or 'all questions'}", as_markdown(figure_table(of, interval=True))]
        parts += [f"![{p}]({p})" for p in pictures if p.endswith(f"-{split or 'all'}.png")]
        if compared.get(split):
            parts += ["Paired differences:", as_markdown(difference_table(compared[split]))]
    parts += ["## Counts", as_markdown((["what", "number"], [[str(k), str(v)] for k, v in counts.items()]))]
    return "\n\n".join(parts) + "\n"


_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { border: 1px solid #ccc; padding: .3em .6em; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f6f6f6; } img { max-width: 100%; }
</style>
{% macro table(t) %}
<table><tr>{% for c in t[0] %}<th>{{ c }}</th>{% endfor %}</tr>
{% for line in t[1] %}<tr>{% for c in line %}<td>{{ c }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endmacro %}
<h1>Evaluation</h1><p>{{ legend }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{{ table(section.figures) }}
{% for picture in section.pictures %}<img alt="{{ picture.name }}" src="data:image/png;base64,{{ picture.data }}">
{% endfor %}
{% if section.differences[1] %}<h3>Paired differences</h3>
{{ table(section.differences) }}{% endif %}
{% endfor %}
<h2>Counts</h2>
{{ table(counts) }}
</html>
""")


def html(
    found: Mapping[str, Mapping[str, Mapping[str, Figure]]],
    compared: Mapping[str, Mapping[str, Mapping[str, PairedTest]]],
    counts: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> str:
    """The report as one page that needs no other file."""
    sections = [
        {
            "title": split or "all questions",
            "figures": figure_table(of, interval=True),
            "differences": difference_table(compared.get(split, {})),
            "pictures": [
                {"name": name, "data": base64.b64encode(data).decode()}
                for name, data in pictures.items()
                if name.endswith(f"-{split or 'all'}.png")
            ],
        }
        for split, of in found.items()
    ]
    table = (["what", "number"], [[str(k), str(v)] for k, v in counts.items()])
    return _PAGE.render(legend=LEGEND, sections=sections, counts=table)
