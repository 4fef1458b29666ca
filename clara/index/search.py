"""INDEX: the two levels of retrieval over a MEMORY.

First level: FAISS over the keys, whose inner product is about the flattened cosine; it gives L candidates. Second
level: the exact flattened cosine of those over the mapped payload. FAISS ids are `row_id`s: every live row, and nothing
else.

Both levels score a row by itself and order equal scores by `row_id`, so that what is found depends neither on the batch
of queries nor on how the rows are shared out among owners: one process that maps the whole INDEX, or many that hold a
part each.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clara.arrays import NO_ROW, Floats, Ids
from clara.config.model import Score
from clara.errors import InputError
from clara.index.ivf_file import ids_of, read_mapped
from clara.index.scores import Ranked, best, merged
from clara.memory.keys import KeyProjection, key_projection
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED, unit_rows
from clara.storage.artefact import Artefact
from clara.storage.paths import Name

if TYPE_CHECKING:
    from torch import Tensor

KIND, FILE = "INDEX", "index.faiss"

_PAYLOAD_BYTES = 256 * 2**20  # second level: decoded payload held at once

_log = logging.getLogger(__name__)


# --- one owner of rows -----------------------------------------------------------------------------------------------


class IndexedRows:
    """Some rows of a MEMORY on the machine that stores them: FAISS over their keys, and their payload."""

    def __init__(self, store: MemoryStore, index: Any) -> None:
        self._store, self._index = store, index

    def best_keys(self, keys: Floats, wanted: int) -> list[Ranked]:
        """For each of keys `[B, KD]` the rows that suit it best, `wanted` of them or as many as FAISS finds."""
        found: list[Ranked] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(keys)
        open_numbers, asked = np.arange(len(keys)), min(wanted + 1, self._index.ntotal)
        while len(open_numbers) and asked:
            scores, ids = self._index.search(keys[open_numbers], asked)
            # Where equal scores reach to the end, more of them may follow: which FAISS leaves out is its own choice, so
            # all are looked at.
            cut = (
                (ids[:, -1] >= 0)
                & (asked > wanted)
                & (scores[:, min(wanted, asked) - 1] == scores[:, -1])
                & (asked < self._index.ntotal)
            )
            for place in np.flatnonzero(~cut).tolist():
                there = ids[place] >= 0
                own, score = ids[place][there], scores[place][there]
                order = best(score, own, wanted)
                found[open_numbers[place]] = own[order], score[order]
            open_numbers, asked = open_numbers[cut], min(2 * asked, self._index.ntotal)
        return found

    def cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """Exact flattened cosine of each query of `[B, M, D]` with its own candidates, each by itself."""
        # Questions share candidates: each payload row is read once for all of them.
        union = np.unique(np.concatenate([np.empty(0, np.int64), *candidates]))
        memory, unit = unit_rows(self._store.memory(union)), unit_rows(query)
        # In a matrix product a row's rounding depends on its place; a separate sum does not.
        return [
            (memory[np.searchsorted(union, own)] * unit[number]).sum(axis=1) for number, own in enumerate(candidates)
        ]

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """Memory `[n, M, D]` of rows."""
        return self._store.memory(row_ids)


# --- searching -------------------------------------------------------------------------------------------------------


class TwoLevels(ABC):
    """Search in two levels over the rows of a MEMORY, wherever these are held.

    Attributes:
        store: the MEMORY.
        artefact: the INDEX; None where it has just been built.
        score: by which rows are ranked.
    """

    score = PUBLISHED

    def __init__(self, store: MemoryStore, artefact: Artefact | None = None) -> None:
        self.store = store
        self.artefact = artefact
        fields = store.fingerprint_fields
        self._projection: KeyProjection = key_projection(
            fields.num_memory_tokens, fields.hidden_size, fields.key_size, fields.key_seed
        )

    @abstractmethod
    def _best_keys(self, keys: Floats, wanted: int) -> list[list[Ranked]]:
        """See `IndexedRows.best_keys`: of each owner."""

    @abstractmethod
    def _cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """See `IndexedRows.cosines`: of rows of all owners."""

    @abstractmethod
    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """Memory `[n, M, D]` of rows, from who holds them."""

    def search(
        self, query: "Floats | Tensor", k: int, first_level: int, exclude: Sequence[Collection[int]] | None = None
    ) -> tuple[Ids, Floats]:
        """The k best rows of each query: L candidates by key, ranked by exact flattened cosine, equal ones by `row_id`.

        Args:
            query: `[B, M, D]`.
            k: rows wanted.
            first_level: L, at least k.
            exclude: for each query row ids that are left out; L counts what remains.

        Returns:
            Row ids `[B, k]` and scores `[B, k]`; -1 and -inf where there are fewer. A query with a non-finite value or
            norm returns no rows and logs a warning; other queries are unaffected.

        Raises:
            InputError: the query has another shape than the MEMORY's, or L is under k.
        """
        array = query if isinstance(query, np.ndarray) else query.detach().float().cpu().numpy()
        values = np.asarray(array, np.float32)
        shape = (self.store.num_memory_tokens, self.store.hidden_size)
        if values.ndim != 3 or values.shape[1:] != shape:
            raise InputError(
                f"query has shape {list(values.shape)}, expected [B, {shape[0]}, "
                f"{shape[1]}] as {self.store.directory}; use the model that made it"
            )
        if not 1 <= k <= first_level:
            raise InputError(f"k is {k} and first_level {first_level}; expected 1 ≤ k ≤ first_level")
        excluded = (
            [np.fromiter(rows, np.int64) for rows in exclude]
            if exclude is not None
            else [np.empty(0, np.int64)] * len(values)
        )
        rows = np.full((len(values), k), NO_ROW, np.int64)
        scores = np.full((len(values), k), -np.inf, np.float32)
        asked = _finite(values)
        values, excluded = values[asked], [excluded[number] for number in asked]
        for begin, candidates in self._first_level(values, first_level, excluded):
            cosines = self._cosines(values[begin : begin + len(candidates)], candidates)
            for number, own, exact in zip(asked[begin:], candidates, cosines, strict=False):
                order = best(exact, own, k)
                rows[number, : len(order)], scores[number, : len(order)] = own[order], exact[order]
        return rows, scores

    def _first_level(
        self, values: Floats, first_level: int, excluded: Sequence[Ids]
    ) -> Iterator[tuple[int, list[Ids]]]:
        """Yield (first query, ascending candidates `[≤ L]` of each) for groups whose payload fits in memory."""
        row_bytes = 4 * self.store.num_memory_tokens * self.store.hidden_size
        group = max(1, _PAYLOAD_BYTES // (row_bytes * first_level))
        for begin in range(0, len(values), group):
            part = excluded[begin : begin + group]
            wanted = min(first_level + max(len(rows) for rows in part), len(self.store))
            owners = self._best_keys(self._projection.keys(values[begin : begin + group]), wanted)
            found = [merged(parts)[0] for parts in zip(*owners, strict=True)]
            yield (
                begin,
                [np.sort(ids[~np.isin(ids, rows)][:first_level]) for ids, rows in zip(found, part, strict=True)],
            )


def _finite(values: Floats) -> list[int]:
    """Numbers of the queries `[B, M, D]` that have a length."""
    with np.errstate(over="ignore", invalid="ignore"):
        asked: list[int] = np.flatnonzero(np.isfinite(np.square(values).sum(axis=(1, 2)))).tolist()
    if len(asked) < len(values):
        _log.warning(
            "index: %d of %d queries are not finite, and nothing is found for them",
            len(values) - len(asked),
            len(values),
        )
    return asked


class MemoryIndex(TwoLevels):
    """An open INDEX with the MEMORY that it is for, both mapped: processes of one machine share their pages."""

    def __init__(self, store: MemoryStore, index: Any, artefact: Artefact | None = None) -> None:
        super().__init__(store, artefact)
        self.faiss = index
        self._rows = IndexedRows(store, index)

    @classmethod
    def open(cls, source: Name | Artefact, store: MemoryStore, score: Score = PUBLISHED) -> "MemoryIndex":
        """Open an INDEX for a MEMORY and a score.

        Raises:
            InputError: it is unfinished, damaged, for another MEMORY, or for another score.
        """
        artefact = open_index(source, store, score)
        index = read_mapped(artefact.folder / FILE)
        check_rows(index, store, artefact.name)
        return cls(store, index, artefact)

    def _best_keys(self, keys: Floats, wanted: int) -> list[list[Ranked]]:
        return [self._rows.best_keys(keys, wanted)]

    def _cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        return self._rows.cosines(query, candidates)

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """See the base class."""
        return self._rows.memory(row_ids)


def open_index(source: Name | Artefact, store: MemoryStore, score: Score = PUBLISHED) -> Artefact:
    """Open an INDEX of a MEMORY without reading its rows.

    Raises:
        InputError: the INDEX is unfinished, damaged, for another MEMORY, or for another score.
    """
    artefact = Artefact.open(source, KIND)
    memory = artefact.manifest["memory"]
    if memory != store.hash:
        raise InputError(
            f"{artefact.name}: for MEMORY {memory}, but {store.directory} is {store.hash}; "
            "give the MEMORY that it was built from, or build an index for this one with pipelines.build_index"
        )
    if score != PUBLISHED:
        raise InputError(
            f"{artefact.name}: its keys are for the published score, that of the CHECKPOINT is {score}; "
            "leave the index out: every row is then searched exactly"
        )
    artefact.check_sizes()
    return artefact


def check_rows(index: Any, store: MemoryStore, where: str) -> None:
    """Every live row is in the index, and nothing else.

    Raises:
        InputError: rows differ.
    """
    ids = np.sort(ids_of(index))
    if index.ntotal != len(ids) or not np.array_equal(ids, store.row_ids):
        extra, missing = len(np.setdiff1d(ids, store.row_ids)), len(np.setdiff1d(store.row_ids, ids))
        raise InputError(
            f"{where}: {len(ids)} rows, {extra} of them not in {store.directory}, "
            f"{missing} of whose {len(store)} live rows are missing; build the index again"
        )
