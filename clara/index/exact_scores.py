"""Exact scores of a MEMORY's rows for queries, over the payload; without FAISS."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clara.arrays import Floats, Ids
from clara.index.keys import IndexKeys

_HELD_BYTES = 128 * 2**20  # unit vectors that stay decoded, where more than half of the rows are asked for at once
_CACHE_BYTES = 2**20  # rows that are compared with one query after another, while they are in the processor's cache


class ExactScores:
    """Scores of some rows of a MEMORY on the machine that stores them."""

    def __init__(self, keys: IndexKeys, num_rows: int, row_ids: Callable[[], Ids]) -> None:
        """Score rows of a MEMORY.

        Args:
            keys: of the MEMORY, under a score.
            num_rows: number of the rows.
            row_ids: gives their ids, ascending.
        """
        self._keys, self._num_rows, self._row_ids = keys, num_rows, row_ids
        self._held: tuple[Ids, Floats] | None = None  # where rows are few: all of them, and their unit vectors

    def cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """Exact score of each query of `[B, M, D]` with its own candidates, in their order; each row by itself."""
        # Questions share candidates: each payload row is read once for all of them.
        union = np.unique(np.concatenate([np.empty(0, np.int64), *candidates]))
        unit = self._keys.unit_queries(query)
        orders = [np.argsort(own, kind="stable") for own in candidates]
        ascending = [own[order] for own, order in zip(candidates, orders, strict=True)]
        found = [np.empty(len(own), np.float32) for own in candidates]
        for block, memory in self._unit_blocks(union):
            step = max(1, _CACHE_BYTES // memory[0].nbytes)
            starts = np.append(block[::step], block[-1] + 1)
            bounds = [np.searchsorted(own, starts).tolist() for own in ascending]
            for piece in range(len(starts) - 1):
                for number, bound in enumerate(bounds):
                    first, end = bound[piece : piece + 2]
                    if first < end:
                        # In a matrix product a row's rounding depends on its place; a separate sum does not.
                        rows = memory[np.searchsorted(block, ascending[number][first:end])]
                        found[number][orders[number][first:end]] = (rows * unit[number]).sum(axis=1)
        return found

    def _unit_blocks(self, rows: Ids) -> Iterator[tuple[Ids, Floats]]:
        """Ascending rows, these at least, in blocks that are decoded one at a time, and their unit vectors `[n, F]`."""
        total = self._num_rows
        if self._held is None and total * self._keys.unit_bytes <= _HELD_BYTES and 2 * len(rows) > total:
            own = self._row_ids()
            self._held = own, np.concatenate([vectors for _, vectors in self._decoded(own)])
        yield from self._decoded(rows) if self._held is None else [self._held]

    def _decoded(self, rows: Ids) -> Iterator[tuple[Ids, Floats]]:
        for begin in range(0, len(rows), self._keys.rows_of_block):
            block = rows[begin : begin + self._keys.rows_of_block]
            yield block, self._keys.unit_rows(block)

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """Memory `[n, M, D]` of rows."""
        return self._keys.store.memory(row_ids)
