"""Rows of an INDEX that one process holds: all of them, or a search server's share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clara.arrays import Floats, Ids
from clara.index.keys import IndexKeys
from clara.index.scores import Ranked, best


class IndexedRows:
    """Some rows of a MEMORY on the machine that stores them: FAISS over their keys, and their payload."""

    def __init__(self, keys: IndexKeys, index: Any) -> None:
        self._keys, self._index = keys, index

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
        """Exact score of each query of `[B, M, D]` with its own candidates, which ascend; each row by itself."""
        # Questions share candidates: each payload row is read once for all of them.
        union = np.unique(np.concatenate([np.empty(0, np.int64), *candidates]))
        unit, step = self._keys.unit_queries(query), self._keys.rows_of_block
        found = [np.empty(len(own), np.float32) for own in candidates]
        for begin in range(0, len(union), step):
            block = union[begin : begin + step]
            memory = self._keys.unit_rows(block)
            for vector, own, scores in zip(unit, candidates, found, strict=True):
                first, end = np.searchsorted(own, [block[0], block[-1] + 1])
                # In a matrix product a row's rounding depends on its place; a separate sum does not.
                scores[first:end] = (memory[np.searchsorted(block, own[first:end])] * vector).sum(axis=1)
        return found

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """Memory `[n, M, D]` of rows."""
        return self._keys.store.memory(row_ids)
