"""Rows of an INDEX that one process holds: all of them, or a search server's share."""

from typing import Any

import numpy as np

from clara.arrays import Floats
from clara.index.exact_scores import ExactScores
from clara.index.ivf_file import ids_of
from clara.index.keys import IndexKeys
from clara.index.scores import Ranked, best


class IndexedRows(ExactScores):
    """Some rows of a MEMORY on the machine that stores them: FAISS over their keys, and their payload."""

    def __init__(self, keys: IndexKeys, index: Any) -> None:
        super().__init__(keys, index.ntotal, lambda: np.sort(ids_of(index)))
        self._index = index

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
            for position in np.flatnonzero(~cut).tolist():
                there = ids[position] >= 0
                own, score = ids[position][there], scores[position][there]
                order = best(score, own, wanted)
                found[open_numbers[position]] = own[order], score[order]
            open_numbers, asked = open_numbers[cut], min(2 * asked, self._index.ntotal)
        return found
