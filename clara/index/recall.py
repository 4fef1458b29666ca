"""Recall of an INDEX's two levels against exact search over the whole payload, or over a stated sample of it.

The queries are rows of the INDEX itself, disturbed: memory plus Gaussian noise of half its length, as it is by default,
both pooled and centred as the score says.
No row is held back, so each query's own row can be found, and as a rule is the nearest; the other nine of its ten best
are harder to find. Questions of a query reasoner may be farther from all rows than these do, and the recall of such
questions may be another: `training.evaluate` measures what is found for them.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clara.arrays import Floats, Ids
from clara.config.model import Score
from clara.errors import InputError
from clara.index.keys import IndexKeys
from clara.index.scores import best
from clara.index.search import KIND, MemoryIndex
from clara.memory.codec import layout
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED
from clara.progress import Progress
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write
from clara.storage.manifest import MANIFEST, read_manifest
from clara.storage.paths import Name, join

RECALL_AT = 10
RECALL_FLOOR = 0.9
FLOOR = "recall_floor"
"""Where a manifest's `made_by` holds it."""
_MARGIN = 1e-6  # of two ways to round a cosine
_MOST_QUERIES = 1024

_log = logging.getLogger(__name__)


def exact_search(store: MemoryStore, query: Floats, k: int, score: Score = PUBLISHED) -> Ids:
    """The k best rows `[B, k]` of queries `[B, M, D]` over every row: reads the whole payload once, block by block."""
    return exact_among(IndexKeys(store, score), [rows for _, rows in store.iter_shards()], query, k)[0]


def exact_among(
    keys: IndexKeys,
    shards: Sequence[Ids],
    query: Floats,
    k: int,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> tuple[Ids, Floats]:
    """The k best rows `[B, k]` and scores of queries `[B, M, D]` among some shards; `on_progress` gets row counts."""
    unit = keys.unit_queries(query)
    rows = np.empty((len(query), 0), np.int64)
    scores = np.empty((len(query), 0), np.float32)
    for block in _blocks(shards, keys.rows_of_block):
        found, read = unit @ keys.unit_rows(block).T, len(block)
        # Only what may be among the k best is sorted; equal scores at the end all may.
        if len(block) > k:
            least = np.partition(found, len(block) - k, axis=1)[:, len(block) - k]
            kept = np.flatnonzero((found >= least[:, None]).any(axis=0))
            block, found = block[kept], found[:, kept]
        rows = np.concatenate([rows, np.broadcast_to(block, found.shape)], axis=1)
        scores = np.concatenate([scores, found], axis=1)
        order = np.stack([best(s, r, k) for s, r in zip(scores, rows, strict=True)])
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        on_progress(read)
    return rows, scores


def _blocks(shards: Sequence[Ids], size: int) -> Iterator[Ids]:
    for rows in shards:
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size]


@dataclass(frozen=True)
class Measurement:
    """How recall is measured.

    Attributes:
        first_level: L.
        num_queries: indexed rows that, disturbed, are asked for, none of them held back; 0: no measurement.
        noise: length of the disturbance, in lengths of the memory.
        most_bytes: of stored payload that exact search may read. What is more is represented by whole shards, which
            hold rows by hash, and more queries make up for it.
    """

    first_level: int
    num_queries: int = 64
    noise: float = 0.5
    most_bytes: int = 32 * 2**30


class Recall:
    """Disturbed stored rows, and what exact search finds for them."""

    def __init__(
        self,
        index: MemoryIndex,
        how: Measurement,
        *,
        seed: int,
        row_bytes: int,
        on_progress: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Draw the queries and find their rows by exact search.

        Args:
            index: with its MEMORY.
            how: number of queries and so on.
            seed: draws queries, their noise, and the shards of a sample.
            row_bytes: stored payload of a row.
            on_progress: called with the number of rows of each block that was read.
        """
        store, rng = index.store, np.random.default_rng(seed)
        shards = [rows for _, rows in store.iter_shards() if len(rows)]
        most_rows = max(1, how.most_bytes // row_bytes)
        compared = shards
        if len(store) > most_rows:
            order = rng.permutation(len(shards))
            sizes = np.cumsum([len(shards[i]) for i in order])
            compared = [shards[i] for i in np.sort(order[: max(1, int((sizes <= most_rows).sum()))])]
        self.rows_compared = sum(len(rows) for rows in compared)
        self.share = self.rows_compared / len(store)
        wanted = min(_MOST_QUERIES, math.ceil(how.num_queries / self.share)) if self.share < 1 else how.num_queries
        chosen = store.row_ids[np.sort(rng.choice(len(store), min(wanted, len(store)), replace=False))]
        self._index = index
        self._k = min(RECALL_AT, len(store))
        self._query = _disturbed(index.keys, chosen, how.noise, rng)
        self._rows, self._scores = exact_among(index.keys, compared, self._query, self._k, on_progress)

    @property
    def num_queries(self) -> int:
        """Number of queries."""
        return len(self._query)

    def of(self, first_level: int) -> float:
        """Recall@10 with this L (at least 10): exact over all rows, estimated from below over a sample.

        Let t be the score of the worst row found. Every row with a higher score that was not found is a miss, and
        recall is at least 1 − misses / 10, as a miss drives out one row found at most. Misses in the sample, divided by
        its share, estimate all. A row whose score equals t is none, as which of equal rows is found does not matter.
        """
        found, scores = self._index.search(self._query, self._k, first_level=max(first_level, self._k))
        missed = [
            np.count_nonzero(~np.isin(rows, own) & (exact > score[-1] + _MARGIN))
            for own, score, rows, exact in zip(found, scores, self._rows, self._scores, strict=True)
        ]
        if self.share == 1:
            return float(np.mean([(self._k - number) / self._k for number in missed]))
        return max(0.0, 1.0 - float(np.mean(missed)) / self.share / self._k)

    def of_every_list(self, first_level: int) -> float | None:
        """The same with every inverted list probed; None where the index has none."""
        inverted = faiss.try_extract_index_ivf(self._index.faiss)
        if inverted is None:
            return None
        before, inverted.nprobe = inverted.nprobe, inverted.nlist
        try:
            return self.of(first_level)
        finally:
            inverted.nprobe = before


def _disturbed(keys: IndexKeys, rows: Ids, noise: float, rng: np.random.Generator) -> Floats:
    """Queries `[n, M, D]`: what the score compares of rows, with Gaussian noise of `noise` times its length."""
    memory = keys.store.memory(rows)
    if keys.mean is not None:
        memory = memory - keys.mean
    shape = memory.shape
    if keys.score.pooling == "slot_mean":  # noise of each slot's own would be averaged away
        memory = memory.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.square(memory).sum(axis=(1, 2), keepdims=True))
    disturbance: NDArray[np.float64] = noise * lengths / math.sqrt(memory[0].size) * rng.standard_normal(memory.shape)
    return np.broadcast_to(memory + disturbance.astype(np.float32), shape)


# --- what it is worth ------------------------------------------------------------------------------------------------


def measure(
    index: MemoryIndex, asked: Measurement, *, seed: int, recall_floor: float, progress: bool = False
) -> dict[str, Any]:
    """Recall@10 and what it was measured with; where it is under the floor, also what other settings would give."""
    store = index.store
    measured: dict[str, Any] = {
        "recall_at_10": None,
        "first_level": len(store) if index.exact else max(asked.first_level, min(RECALL_AT, len(store))),
        "num_queries": asked.num_queries,
        "noise": asked.noise,
        "rows_compared": 0,
        "exact": True,
    }
    if not asked.num_queries:
        return measured
    shapes = layout(store.codec, store.num_memory_tokens, store.hidden_size).values()
    row_bytes = sum(kind.itemsize * math.prod(shape) for kind, shape in shapes)
    with Progress(len(store), "measure", " rows", shown=progress) as bar:
        recall = Recall(
            index, asked, seed=seed, row_bytes=row_bytes, on_progress=lambda rows: bar.update(rows) and None
        )
    if recall.share < 1:
        _log.info(
            "index: the payload has %.1f GiB, so recall is estimated from below on %d of %d rows with %d queries",
            len(store) * row_bytes / 2**30,
            recall.rows_compared,
            len(store),
            recall.num_queries,
        )
    found = recall.of(asked.first_level)
    measured |= {
        "recall_at_10": found,
        "num_queries": recall.num_queries,
        "rows_compared": recall.rows_compared,
        "exact": recall.share == 1,
    }
    if found < recall_floor:
        wider = min(4 * asked.first_level, len(store))
        measured["remedies"] = {
            f"first_level {wider}": recall.of(wider),
            "every list probed": recall.of_every_list(asked.first_level),
        }
    return measured


def enforce_recall_floor(output: str, measured: Mapping[str, Any], *, recall_floor: float, strict: bool) -> None:
    """Warn of a recall under the floor, or refuse it where that is asked for.

    Raises:
        InputError: with the measured value and what to do.
    """
    warning = recall_warning(output, measured, recall_floor)
    if warning and strict:
        raise InputError(
            f"{warning}; or accept it without --strict-recall. Finished parts are kept: "
            "the same command continues from there"
        )
    if warning:
        _log.warning("%s", warning)


def recall_from_manifest(source: Name | Artefact) -> tuple[float | None, str]:
    """The recall@10 measured when an INDEX was built (None: not measured), and a warning if it is under its floor."""
    index = Artefact.open(source, KIND, lazy=True)
    floor = index.manifest["made_by"].get(FLOOR, RECALL_FLOOR)
    return index.manifest["measured"]["recall_at_10"], recall_warning(index.name, index.manifest["measured"], floor)


def recall_warning(output: str, measured: Mapping[str, Any], recall_floor: float) -> str:
    """The warning of a recall under the floor; empty where there is nothing to warn of."""
    recall = measured["recall_at_10"]
    if recall is None or recall >= recall_floor:
        return ""
    compared = (
        "exact search over every row"
        if measured["exact"]
        else f"exact search over a sample of {measured['rows_compared']} rows, from below"
    )
    would = "".join(
        f"; with {name} it would be {value:.3f}"
        for name, value in measured.get("remedies", {}).items()
        if value is not None
    )
    found, floor = _apart(recall, recall_floor)
    return (
        f"{output}: recall@10 is {found} with first_level {measured['first_level']} ({compared}, "
        f"{measured['num_queries']} queries), "
        f"under the floor of {floor}{would}. Raise first_level or the lists probed, give the MEMORY larger keys, "
        "or choose another factory"
    )


def _apart(one: float, other: float) -> tuple[str, str]:
    """Two different numbers with as many decimals, three at least, as it takes to see that."""
    decimals = next(n for n in range(3, 400) if f"{one:.{n}f}" != f"{other:.{n}f}")
    return f"{one:.{decimals}f}", f"{other:.{decimals}f}"


def with_floor(output: Name, recall_floor: float) -> dict[str, Any]:
    """The manifest of an INDEX that is there, which keeps the floor that was last asked for."""
    manifest = read_manifest(output, KIND)
    if manifest["made_by"].get(FLOOR, RECALL_FLOOR) != recall_floor:
        manifest["made_by"][FLOOR] = recall_floor
        atomic_write(join(output, MANIFEST), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest
