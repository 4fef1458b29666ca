"""Ranking by memory: the score of query and memory, through an INDEX or over all rows.

Shapes: B questions, n rows, k rows asked for, M memory tokens, D hidden size, F = M·D or D (`clara.model.geometry`).
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from clara.arrays import NO_ROW, Floats, Ids
from clara.config.model import Score
from clara.index.exact_scores import ExactScores
from clara.index.keys import IndexKeys
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED
from clara.model.geometry import represent
from clara.retrieval.ranker import Queries, row_lists

# Rows whose memory is decoded at once when there is no INDEX.
_EXACT_BLOCK_ROWS = 512
_PAYLOAD_BYTES = 256 * 2**20  # of candidates, decoded, held at once


class VectorSearch(Protocol):
    """Finds rows of a MEMORY by query vectors: `clara.index.search.TwoLevels`, or `ExactSearch`."""

    store: MemoryStore
    score: Score

    def search(
        self, query: Floats | Tensor, k: int, first_level: int, exclude: Sequence[Collection[int]] | None = None
    ) -> tuple[Ids, Floats]:
        """See `TwoLevels.search`."""
        ...

    def cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """See `TwoLevels.cosines`."""
        ...


class ExactSearch:
    """Search over all rows of a MEMORY, at the price of reading its whole payload."""

    def __init__(self, store: MemoryStore, score: Score = PUBLISHED) -> None:
        """Search the rows of a MEMORY under a score.

        Raises:
            InputError: the score is centred, and the MEMORY has no mean.
        """
        self.store, self.score = store, score
        self._mean = corpus_mean(store, score)
        self._exact = ExactScores(IndexKeys(store, score), len(store), lambda: store.row_ids)

    def search(
        self, query: Floats | Tensor, k: int, first_level: int, exclude: Sequence[Collection[int]] | None = None
    ) -> tuple[Ids, Floats]:
        """See `TwoLevels.search`; there is no first level."""
        rows = self.store.row_ids
        queries_BF = represent(torch.as_tensor(query).float(), self.score)
        excluded = [np.fromiter(out, np.int64) for out in exclude or []]
        ids_Bk = np.full((len(queries_BF), k), NO_ROW, np.int64)
        best_Bk = np.full((len(queries_BF), k), -np.inf, np.float32)
        for begin in range(0, len(rows), _EXACT_BLOCK_ROWS):
            own = rows[begin : begin + _EXACT_BLOCK_ROWS]
            memory_nF = represent(torch.from_numpy(self.store.memory(own)), self.score, self._mean)
            scores_Bn = (queries_BF @ memory_nF.T).numpy()
            scores_Bn[~np.isfinite(scores_Bn)] = -np.inf  # a query that is not finite returns no rows, as with an INDEX
            for scores, out in zip(scores_Bn, excluded, strict=False):
                if len(out):
                    scores[np.isin(own, out)] = -np.inf
            # Rows ascend, so that a stable sort breaks ties by row id, those of earlier blocks first.
            joined = np.concatenate([best_Bk, scores_Bn], axis=1)
            ids = np.concatenate([ids_Bk, np.broadcast_to(own, scores_Bn.shape)], axis=1)
            order_Bk = np.argsort(-joined, axis=1, kind="stable")[:, :k]
            best_Bk = np.take_along_axis(joined, order_Bk, axis=1)
            ids_Bk = np.take_along_axis(ids, order_Bk, axis=1)
        return np.where(np.isneginf(best_Bk), NO_ROW, ids_Bk), best_Bk

    def cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """See `TwoLevels.cosines`."""
        return self._exact.cosines(query, candidates)


class MemoryRanker:
    """Ranks rows by query vectors, which `Queries.vectors` holds. A `Ranker`."""

    def __init__(self, search: VectorSearch, first_level: int) -> None:
        """Rank by a search over query vectors.

        Args:
            search: over the rows.
            first_level: L of the search; k where more rows are asked for.
        """
        self._search, self._first_level = search, first_level

    def rank(self, queries: Queries, k: int) -> list[list[int]]:
        """See `Ranker`."""
        k = min(k, max(1, len(self._search.store)))
        first_level = max(k, self._first_level)
        rows_Bk, _ = self._search.search(_vectors(queries), k, first_level=first_level, exclude=queries.excluded)
        return row_lists(rows_Bk)

    def score(self, queries: Queries, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Ranker`. Questions share candidates: their memory is read once for as many as fit in memory."""
        vectors, candidates = _vectors(queries).float().cpu().numpy(), [np.asarray(own, np.int64) for own in rows]
        store, scores, begin = self._search.store, [], 0
        most = max(1, _PAYLOAD_BYTES // (4 * store.num_memory_tokens * store.hidden_size))
        while begin < len(candidates):
            end, union = begin + 1, set(candidates[begin].tolist())
            while end < len(candidates) and len(union := union | {*candidates[end].tolist()}) <= most:
                end += 1
            scores += self._search.cosines(vectors[begin:end], candidates[begin:end])
            begin = end
        return [of.tolist() for of in scores]


def corpus_mean(store: MemoryStore, score: Score) -> Tensor | None:
    """The mean `[M, D]` that a score subtracts from the rows of a MEMORY; None if it is not centred.

    Raises:
        InputError: the MEMORY has no mean.
    """
    return torch.from_numpy(store.mean) if score.centred else None


def _vectors(queries: Queries) -> Tensor:
    if queries.vectors is None:
        raise ValueError("Queries.vectors is None; encode the questions first")
    return queries.vectors
