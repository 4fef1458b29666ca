"""The demo's one table, from an evaluation's report.json, for the terminal and as Markdown (docs/results/demo.md).

python -m infra.summary EVALUATION [--markdown] [--split unseen]
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara.config.flags import plain_parser
from clara.errors import InputError, command_line

MEASURES = {
    "index.recall@1": "Recall@1, all documents",
    "index.recall@5": "Recall@5, all documents",
    "index.recall@20": "Recall@20, all documents",
    "index.mrr": "MRR, all documents",
    "pool.recall@1": "Recall@1, pool of 20",
    "pool.recall@5": "Recall@5, pool of 20",
    "pool.mrr": "MRR, pool of 20",
    "pool.log_likelihood": "answer, found in the pool",
    "index.log_likelihood": "answer, found among all",
    "right.log_likelihood": "answer, right document (ceiling)",
    "wrong.log_likelihood": "answer, a wrong one",
    "none.log_likelihood": "answer, none (floor)",
    "gap.right_minus_wrong": "right - wrong",
    "index.exact_match": "exact match, found among all",
    "index.f1": "F1, found among all",
    "right.exact_match": "exact match, right document",
    "none.exact_match": "exact match, none",
}
NAMES = {
    "before": "before",
    "stale": "after, MEMORY v0",
    "after": "after, re-encoded",
    "long": "longer training",
    "bm25/before": "BM25 / before",
    "bm25/after": "BM25 / after",
}
COMPARED = ("index.recall@20", "pool.recall@5", "pool.log_likelihood", "index.log_likelihood", "gap.right_minus_wrong")
LEGEND = (
    "answer: its log-likelihood in nats (0 is best) after reading the K best, the right one, a wrong one, none. "
    "Means over questions, in brackets 95 % bootstrap intervals."
)


def table(report: Mapping[str, Any], split: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a column for each system that the demo compares, a row for each measure that there is.

    Raises:
        InputError: the report has no such split.
    """
    systems = [name for name in NAMES if name in report["systems"]]
    for name in systems:
        if split not in report["systems"][name]:
            raise InputError(
                f"--split {split!r}: the report has {', '.join(report['systems'][name])}; choose one of them"
            )
    rows = []
    for measure, title in MEASURES.items():
        figures = [report["systems"][name][split].get(measure) for name in systems]
        if any(figures):
            rows.append([title, *(f"{f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}]" if f else "" for f in figures)])
    return ["", *(NAMES[name] for name in systems)], rows


def differences(report: Mapping[str, Any], split: str) -> list[str]:
    """What joint training changed, question by question: before to after."""
    found = report["differences"].get(split, {}).get("after - before", {})
    return [
        f"{MEASURES[name]} {d['difference']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}], p = {d['p_value']:.2g}"
        for name in COMPARED
        if (d := found.get(name)) is not None
    ]


def screen(report: Mapping[str, Any], split: str) -> str:
    """What a person reads first: one number a row, with its interval."""
    wanted = (
        ("bm25/after", "index.recall@5", "finds the document, first five of all: BM25"),
        ("before", "index.recall@5", "memory and words, before any training of retrieval"),
        ("after", "index.recall@5", "after minutes of training on this corpus"),
        ("long", "index.recall@5", "after the longer training that ships"),
        ("long", "index.exact_match", "its answers that are right, word for word"),
    )
    rows = [
        (title, f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}], {found['num_questions']} questions")
        for name, measure, title in wanted
        if (found := report["systems"].get(name, {}).get(split, {}).get(measure))
    ]
    return "\n".join(f"{title:<52} {figures}" for title, figures in rows)


def text(report: Mapping[str, Any], split: str) -> str:
    """Aligned columns for a terminal."""
    head, rows = table(report, split)
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(r, widths, strict=True))
        )
        for r in [head, *rows]
    ]
    count = next((f[split]["index.recall@1"]["num_questions"] for f in report["systems"].values() if split in f), 0)
    changed = differences(report, split)
    return "\n".join(
        [
            f"{count} held-out questions ({split})",
            *lines,
            LEGEND,
            *(["Before to after, paired: " + "; ".join(changed)] if changed else []),
        ]
    )


def markdown(report: Mapping[str, Any], split: str) -> str:
    """The same as a Markdown table."""
    head, rows = table(report, split)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join([*lines, "", *("* " + d for d in differences(report, split))])


def read(evaluation: Path) -> dict[str, Any]:
    """An evaluation's report.

    Raises:
        InputError: the EVALUATION has no report.
    """
    path = evaluation / "report.json"
    if not path.is_file():
        raise InputError(f"{evaluation}: no report.json there; give the --output of training.evaluate")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("infra.summary", __doc__)
    parser.add_argument("evaluation", type=Path, help="directory that training.evaluate wrote in the demo")
    parser.add_argument("--markdown", action="store_true", help="as docs/results/demo.md has it")
    parser.add_argument("--split", default="unseen", help="unseen or seen (default %(default)s)")
    options = parser.parse_args(argv)
    print((markdown if options.markdown else text)(read(options.evaluation), options.split))
    return 0


if __name__ == "__main__":
    command_line(main)
