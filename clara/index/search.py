"""INDEX: the two levels of retrieval over a MEMORY.

First level: FAISS over the keys, whose inner product is about the score (`clara.index.keys`); it gives L candidates.
Second level: the exact score of those over the mapped payload. A MEMORY of few rows has no first level: all rows are
candidates. FAISS ids are `row_id`s: every live row, and nothing else.

Both levels score a row by itself and order equal scores by `row_id`, so that what is found depends neither on the batch
of queries nor on how the rows are shared out among owners: one process that maps the whole INDEX, or many that hold a
part each.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clara.arrays import NO_ROW, Floats, Ids
from clara.config.model import Score
from clara.errors import InputError
from clara.index.indexed_rows import IndexedRows
from clara.index.ivf_file import ids_of, read_mapped
from clara.index.keys import IndexKeys, named, score_of
from clara.index.parts import check_described
from clara.index.scores import Ranked, best, merged
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED
from clara.storage.artefact import Artefact
from clara.storage.paths import Name

if TYPE_CHECKING:
    from torch import Tensor

KIND, FILE = "INDEX", "index.faiss"

_PAYLOAD_BYTES = 256 * 2**20  # second level: payload of a group of queries
_CANDIDATE_BYTES = 32  # of a candidate without its payload: ids and scores

_log = logging.getLogger(__name__)


class TwoLevels(ABC):
    """Search in two levels over the rows of a MEMORY, wherever these are held.

    Attributes:
        store: the MEMORY.
        artefact: the INDEX; None where it has just been built.
        score: by which rows are ranked.
        keys: what the first level compares.
        exact: whether all rows are candidates, whatever L is.
    """

    def __init__(
        self, store: MemoryStore, artefact: Artefact | None = None, score: Score = PUBLISHED, exact_rows: int = 0
    ) -> None:
        """Search the rows of a MEMORY under a score.

        Args:
            store: the MEMORY.
            artefact: see the class.
            score: by which rows are ranked.
            exact_rows: all rows of a MEMORY of at most so many are candidates, whatever L is.

        Raises:
            InputError: the score is centred, and the MEMORY has no mean.
        """
        self.store, self.artefact, self.score = store, artefact, score
        self.keys = IndexKeys(store, score)
        self.exact = len(store) <= exact_rows

    @abstractmethod
    def _best_keys(self, keys: Floats, wanted: int) -> list[list[Ranked]]:
        """See `IndexedRows.best_keys`: of each owner."""

    @abstractmethod
    def cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """See `IndexedRows.cosines`: of rows of all owners."""

    @abstractmethod
    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """Memory `[n, M, D]` of rows, from who holds them."""

    def search(
        self, query: "Floats | Tensor", k: int, first_level: int, exclude: Sequence[Collection[int]] | None = None
    ) -> tuple[Ids, Floats]:
        """The k best rows of each query: L candidates by key, ranked by exact score, equal ones by `row_id`.

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
            cosines = self.cosines(values[begin : begin + len(candidates)], candidates)
            for number, own, exact in zip(asked[begin:], candidates, cosines, strict=False):
                order = best(exact, own, k)
                rows[number, : len(order)], scores[number, : len(order)] = own[order], exact[order]
        return rows, scores

    def _first_level(
        self, values: Floats, first_level: int, excluded: Sequence[Ids]
    ) -> Iterator[tuple[int, list[Ids]]]:
        """Yield (first query, ascending candidates of each) for groups whose payload fits in memory.

        These are L rows or fewer; all that are not excluded where the search is exact.
        """
        if self.exact:
            rows = self.store.row_ids
            group = max(1, _PAYLOAD_BYTES // (_CANDIDATE_BYTES * len(rows)))
            for begin in range(0, len(values), group):
                part = excluded[begin : begin + group]
                yield begin, [rows[~np.isin(rows, out)] if len(out) else rows for out in part]
            return
        row_bytes = 4 * self.store.num_memory_tokens * self.store.hidden_size
        group = max(1, _PAYLOAD_BYTES // (row_bytes * first_level))
        for begin in range(0, len(values), group):
            part = excluded[begin : begin + group]
            wanted = min(first_level + max(len(rows) for rows in part), len(self.store))
            owners = self._best_keys(self.keys.of_queries(values[begin : begin + group]), wanted)
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

    def __init__(
        self,
        store: MemoryStore,
        index: Any,
        artefact: Artefact | None = None,
        score: Score = PUBLISHED,
        exact_rows: int = 0,
    ) -> None:
        super().__init__(store, artefact, score, exact_rows)
        self.faiss = index
        self._rows = IndexedRows(self.keys, index)

    @classmethod
    def open(
        cls, source: Name | Artefact, store: MemoryStore, score: Score = PUBLISHED, exact_rows: int = 0
    ) -> "MemoryIndex":
        """Open an INDEX for a MEMORY and a score; `exact_rows` see `TwoLevels`.

        Raises:
            InputError: see `open_index`; or rows are missing.
        """
        artefact = open_index(source, store, score)
        index = read_mapped(artefact.folder / FILE)
        check_rows(index, store, artefact.name)
        return cls(store, index, artefact, score, exact_rows)

    def _best_keys(self, keys: Floats, wanted: int) -> list[list[Ranked]]:
        return [self._rows.best_keys(keys, wanted)]

    def cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """See the base class."""
        return self._rows.cosines(query, candidates)

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """See the base class."""
        return self._rows.memory(row_ids)


OpenIndex = Callable[[str, MemoryStore, Score, int], TwoLevels]
"""Opens an INDEX of a MEMORY for a score, with `exact_rows` of `TwoLevels`: `MemoryIndex.open`, or search servers."""


def open_index(source: Name | Artefact, store: MemoryStore, score: Score = PUBLISHED) -> Artefact:
    """Open an INDEX of a MEMORY without reading its rows.

    Raises:
        InputError: the INDEX is unfinished, damaged, for another MEMORY, or for another score.
    """
    artefact = Artefact.open(source, KIND)
    check_fits(artefact, store, score)
    artefact.check_sizes()
    return artefact


def check_fits(artefact: Artefact, store: MemoryStore, score: Score) -> None:
    """Refuse an INDEX of another MEMORY or score.

    Raises:
        InputError: the INDEX was built from another MEMORY or for another score; or see `check_described`.
    """
    check_described(artefact)
    memory, found = artefact.manifest["memory"], score_of(artefact)
    if memory != store.hash:
        raise InputError(
            f"{artefact.name}: for MEMORY {memory}, but {store.directory} is {store.hash}; "
            "give the MEMORY that it was built from, or build an index for this one with pipelines.build_index"
        )
    if found != score:
        raise InputError(
            f"{artefact.name}: its keys are for the score {named(found)}, that of the CHECKPOINT is {named(score)}; "
            "build an INDEX for it with python -m pipelines.build_index --checkpoint DIR, or leave the index out: "
            "every row is then searched exactly"
        )


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
