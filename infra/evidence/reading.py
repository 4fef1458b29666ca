"""How well documents are read from memory, by the number of memory tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clara.memory.store import MemoryStore
from clara.storage.manifest import MANIFEST
from infra.evidence.data import SCP
from infra.evidence.rows import read_rows
from training.evaluation.measures import Figure, figures
from training.evaluation.tables import Table, shown


@dataclass(frozen=True)
class Reading:
    """Reading of held-out `scp` documents at one number of memory tokens."""

    memory_tokens: int
    ratio: float
    figures: Mapping[str, Figure]


def reading_of(memory: Path, evaluation: Path) -> Reading:
    """Reading in one evaluation. The ratio is the mean number of tokens of a held-out document per memory token."""
    store = MemoryStore.open(memory)
    rows = [row for row in read_rows(evaluation) if row["split"] == SCP and "/" not in row["system"]]
    first = [row for row in rows if row["system"] == rows[0]["system"]]
    needed = [row for q in first for d in q["positive_ids"] for row in store.rows_of(d)]
    tokens = [chunk.num_tokens for chunk in store.records(needed)]
    return Reading(store.num_memory_tokens, sum(tokens) / len(tokens) / store.num_memory_tokens, figures(first))


def readings(run: Path) -> list[Reading]:
    """Every number of memory tokens that was measured, largest first."""
    found = [reading_of(run / "memory", run / "evaluation")] if (run / "evaluation" / MANIFEST).is_file() else []
    for folder in run.glob("slots-*"):
        if (folder / "evaluation" / MANIFEST).is_file():
            found.append(reading_of(folder / "memory", folder / "evaluation"))
    return sorted(found, key=lambda r: -r.memory_tokens)


def reading_table(found: Sequence[Reading]) -> Table:
    """A row for each compression ratio."""
    names = ("right.log_likelihood", "wrong.log_likelihood", "gap.right_minus_wrong", "open.right_f1", "open.wrong_f1")
    lines = [
        [
            str(r.memory_tokens),
            f"{r.ratio:.1f}",
            *(shown(r.figures[n], interval=True) if n in r.figures else "" for n in names),
        ]
        for r in found
    ]
    return [
        "memory tokens",
        "compression",
        "right [nats]",
        "wrong [nats]",
        "right - wrong",
        "F1, right",
        "F1, wrong",
    ], lines
