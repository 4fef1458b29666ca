"""Rows of an INDEX that one process holds: all of them, or a search server's share."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clara.arrays import Floats, Ids
from clara.index.ivf_file import ids_of
from clara.index.keys import IndexKeys
from clara.index.scores import Ranked, best

_HELD_BYTES = 128 * 2**20  # unit vectors that stay decoded, where more than half of the rows are asked for at once
_CACHE_BYTES = 2**20  # rows that are compared with one query after another, while they are in the processor's cache


class IndexedRows:
    """Some rows of a MEMORY on the machine that stores them: FAISS over their keys, and their payload."""

    def __init__(self, keys: IndexKeys, index: Any) -> None:
        self._keys, self._index = keys, index
        self._held: tuple[Ids, Floats] | None = None  # where rows are few: all of them, and their unit vectors

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
        keys, total = self._keys, self._index.ntotal
        if self._held is None and total * keys.unit_bytes <= _HELD_BYTES and 2 * len(rows) > total:
            own = np.sort(ids_of(self._index))
            self._held = own, np.concatenate([vectors for _, vectors in self._decoded(own)])
        yield from self._decoded(rows) if self._held is None else [self._held]

    def _decoded(self, rows: Ids) -> Iterator[tuple[Ids, Floats]]:
        for begin in range(0, len(rows), self._keys.rows_of_block):
            block = rows[begin : begin + self._keys.rows_of_block]
            yield block, self._keys.unit_rows(block)

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """Memory `[n, M, D]` of rows."""
        return self._keys.store.memory(row_ids)
