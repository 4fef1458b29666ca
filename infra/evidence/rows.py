"""Rows of the evidence's evaluations: who is compared with whom, over which questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from clara.intervals import PairedTest
from clara.metrics import normalise_answer
from clara.storage.manifest import read_manifest
from infra.evidence.data import SPLITS
from training.evaluation.measures import Figure, Row, differences, figures
from training.evaluation.tables import Table, shown

POOLS = SPLITS[:3]
"""Splits whose pools are published."""
TOGETHER = "all pools"
BASELINES = ("bm25", "dense")
CHALLENGERS = ("joint", "answer")
OPPONENTS = ("start", "cut", "shuffled", "live", "labels", *BASELINES)
RECALL, LIKELIHOOD, F1, EXACT = "pool.recall@2", "pool.log_likelihood", "open.pool_f1", "open.pool_exact_match"
CLOSED = ("yes", "no")


def read_rows(evaluation: Path) -> list[Row]:
    """Rows of an EVALUATION, with recall at 2 and answers measured apart from yes and no.

    Raises:
        InputError: it is not there or not finished.
    """
    read_manifest(evaluation, "EVALUATION")
    rows = []
    for row in pq.read_table(evaluation / "per_question.parquet").to_pylist():
        if curve := row.get("pool_recall_curve"):
            row[RECALL] = float(curve[1])
        if normalise_answer(row["answers"][0]) not in CLOSED:
            for name in [n for n in row if n.endswith((".f1", ".exact_match")) and row[n] is not None]:
                row[f"open.{name.replace('.', '_')}"] = row[name]
        rows.append(row)
    return rows


def label_of(system: str, rows: Sequence[Row]) -> str:
    """The row label of a system: baselines are read by the first system's generator."""
    labels = list(dict.fromkeys(row["system"] for row in rows))
    return f"{system}/{labels[0]}" if system in BASELINES else system


def chosen(rows: Sequence[Row], system: str, split: str) -> list[Row]:
    """Rows of one system: of a split, or of all published pools together."""
    label, splits = label_of(system, rows), POOLS if split == TOGETHER else (split,)
    return [row for row in rows if row["system"] == label and row["split"] in splits]


def compare(rows: Sequence[Row], challenger: str, base: str, split: str, measure: str) -> PairedTest | None:
    """A measure's paired difference; None where it was not measured for both."""
    return differences(chosen(rows, challenger, split), chosen(rows, base, split)).get(measure)


def systems_of(rows: Sequence[Row]) -> list[str]:
    """Retrievers of an evaluation: baselines first."""
    labels = list(dict.fromkeys(row["system"] for row in rows))
    first = labels[0] if labels else ""
    return [b for b in BASELINES if f"{b}/{first}" in labels] + [label for label in labels if "/" not in label]


def table(rows: Sequence[Row], systems: Sequence[str], columns: Mapping[str, tuple[str, str]]) -> Table:
    """A line for each system, a column for each (split, measure), means with intervals."""
    lines = []
    for system in systems:
        found: dict[str, Mapping[str, Figure]] = {
            split: figures(chosen(rows, system, split)) for split, _ in columns.values()
        }
        cells = [
            shown(found[split][name], interval=True) if name in found[split] else "" for split, name in columns.values()
        ]
        lines.append([system, *cells])
    return ["system", *columns], lines
