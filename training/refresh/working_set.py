"""Which rows an incremental refresh encodes again: those that steps use, by use and drift, and the oldest.

Rank 0 writes a `RowSelection` at the snapshot; the process of the refresh adds the rows that upcoming questions find,
selects, and measures each row's drift.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.model.array_geometry import unit_rows
from clara.storage.folders import atomic_write
from clara.storage.tables import read_table
from training.refresh.ages import steps_of_rows

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class UpcomingCandidates:
    """What the next steps will use.

    Attributes:
        rows: candidates that are known without a search; a row that is one several times is listed as often.
        questions: to search for.
        per_question: rows that the INDEX gives each of them.
    """

    rows: Sequence[int] = ()
    questions: Sequence[str] = ()
    per_question: int = 0


@dataclass(frozen=True)
class RowSelection:
    """What the selection of rows depends on besides MEMORY; plain values, so that it travels as JSON.

    Attributes:
        num_rows: budget.
        oldest_share: of it, for the oldest rows whatever their use.
        row_ids: rows in use.
        uses: how often each of them is.
        questions: of coming steps, to be searched for.
        per_question: rows that the index gives each of them.
        steps: by fingerprint, the updates after which its snapshot was taken.
        drift: file with measured drift of rows, see `write_drift`; empty: none was measured.
    """

    num_rows: int
    oldest_share: float
    row_ids: list[int]
    uses: list[int]
    questions: list[str]
    per_question: int
    steps: dict[str, int]
    drift: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all."""
        atomic_write(path, json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RowSelection":
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a selection.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: not the row selection of an incremental refresh ({error}); joint training writes it"
            ) from error


@dataclass
class WorkingSet:
    """Candidates of the steps since the last snapshot, with how often each was one."""

    uses: Counter[int] = field(default_factory=Counter)

    def saw(self, pools: Iterable[Iterable[int]]) -> None:
        """Count the candidates of a step."""
        for pool in pools:
            self.uses.update(pool)

    def state(self) -> dict[str, list[int]]:
        """The counts, as a run state keeps them."""
        return {"row_ids": list(self.uses), "uses": list(self.uses.values())}

    def restore(self, state: Mapping[str, list[int]]) -> None:
        """Take back what `state` gave."""
        self.uses = Counter(dict(zip(state["row_ids"], state["uses"], strict=True)))


def choose_rows(
    row_ids: Ids,
    lag: NDArray[np.int64],
    uses: NDArray[np.int64],
    rate: NDArray[np.float64],
    *,
    num_rows: int,
    oldest_share: float,
) -> Ids:
    """The rows of an incremental refresh, ascending.

    First the `oldest_share` of the budget that have the largest lag; then rows in use, by uses × expected drift, which
    is rate × lag; then, where the budget is not used up, the oldest that remain. Equal ones by row id, which is a hash.
    A row without lag is never chosen.

    Args:
        row_ids: all rows `[n]`, ascending.
        lag: updates of the compressor that each row's stored memory lacks `[n]`.
        uses: how often recent and coming steps have each row among their candidates `[n]`.
        rate: drift that is expected of each row for one update `[n]`.
        num_rows: the budget.
        oldest_share: see above.
    """
    positions = np.arange(len(row_ids))
    by_age = positions[np.lexsort((row_ids, -lag))]
    by_age = by_age[lag[by_age] > 0]
    oldest = by_age[: int(oldest_share * num_rows)]
    worth = uses * rate * lag
    by_use = positions[np.lexsort((row_ids, -worth))]
    by_use = by_use[(worth[by_use] > 0) & ~np.isin(by_use, oldest)][: num_rows - len(oldest)]
    chosen = np.concatenate([oldest, by_use])
    rest = by_age[~np.isin(by_age, chosen)][: max(0, num_rows - len(chosen))]
    return np.sort(row_ids[np.concatenate([chosen, rest])])


def rows_to_refresh(
    selection: RowSelection,
    store: MemoryStore,
    snapshot_step: int,
    search: Callable[[Sequence[str], int], Ids] | None = None,
) -> tuple[Ids, NDArray[np.int64]]:
    """The rows of a MEMORY that a selection comes to, and the lag of each.

    Args:
        selection: of rank 0.
        store: the version that is followed.
        snapshot_step: updates after which the new snapshot was taken.
        search: gives the best rows `[questions, k]` of questions, -1 where there are fewer; None: there is no index.

    Raises:
        InputError: the store holds vectors of a version that the selection does not know.
    """
    uses = Counter(dict(zip(selection.row_ids, selection.uses, strict=True)))
    if selection.questions and selection.per_question and search is not None:
        uses.update(row for row in search(selection.questions, selection.per_question).ravel().tolist() if row >= 0)
    lag = snapshot_step - steps_of_rows(store, selection.steps)
    counts = np.zeros(len(store), np.int64)
    counts[np.searchsorted(store.row_ids, np.fromiter(uses, np.int64))] = np.fromiter(uses.values(), np.int64)
    rows = choose_rows(
        store.row_ids,
        lag,
        counts,
        drift_rates(store.row_ids, selection.drift),
        num_rows=selection.num_rows,
        oldest_share=selection.oldest_share,
    )
    return rows, lag[np.searchsorted(store.row_ids, rows)]


# --- drift -----------------------------------------------------------------------------------------------------------


def drift_rates(row_ids: Ids, path: str) -> NDArray[np.float64]:
    """Expected drift (1 − cosine) of each row for one update `[n]`.

    A row that was not measured has the mean of those that were; without any measurement all have 1.
    """
    rates = np.full(len(row_ids), np.nan)
    if path:
        table = read_table(Path(path), ["row_id", "drift", "lag_steps"])
        known, drift, lag = (table[name].to_numpy() for name in ("row_id", "drift", "lag_steps"))
        positions = np.searchsorted(row_ids, known)
        rates[positions] = np.maximum(drift, 0.0) / np.maximum(lag, 1)
    mean = float(np.nanmean(rates)) if np.isfinite(rates).any() else 0.0
    # All alike, rows are ordered by use and age alone.
    return np.nan_to_num(rates, nan=mean) if mean > 0 else np.ones(len(row_ids))


def write_drift(
    path: str | os.PathLike[str], before: MemoryStore, after: MemoryStore, rows: Ids, lag: NDArray[np.int64], known: str
) -> float:
    """Measure how far rows moved between two versions, and write it over an earlier file `known`. Returns the mean.

    Raises:
        InputError: a file is damaged, or the disk refuses.
    """
    found = []
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[begin : begin + _ROWS_AT_ONCE]
        found.append(
            1.0 - np.einsum("nf,nf->n", unit_rows(before.memory(part)), unit_rows(after.memory(part)), dtype=np.float64)
        )
    drift = np.concatenate(found)
    table = {row: (d, steps) for row, d, steps in zip(rows.tolist(), drift.tolist(), lag.tolist(), strict=True)}
    if known:
        old = read_table(Path(known), ["row_id", "drift", "lag_steps"]).to_pydict()
        table = {row: (d, steps) for row, d, steps in zip(*old.values(), strict=True)} | table
    ordered = sorted(table)
    sink = pa.BufferOutputStream()
    columns = {
        "row_id": ordered,
        "drift": [table[row][0] for row in ordered],
        "lag_steps": [table[row][1] for row in ordered],
    }
    pq.write_table(pa.table(columns), sink, compression="zstd")
    atomic_write(path, sink.getvalue().to_pybytes())
    return float(drift.mean())
