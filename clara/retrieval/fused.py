"""Ranking by the fused score: candidates of every source that has a weight, each scored with every feature.

A search unites the best rows of each source, at most `retrieval.candidates` of each, or takes every row of a small
MEMORY. It then computes z = a · cosine/τ + Σ w · feature (`clara.model.fusion`) of all of them.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clara.arrays import Ids
from clara.config.model import FeatureName, Fusion
from clara.config.tree import Retrieval
from clara.index.scores import best
from clara.model.fusion import contributions, fused
from clara.retrieval.bm25 import top
from clara.retrieval.ranker import Queries, Ranker

_log = logging.getLogger(__name__)
_PAIRS_AT_ONCE = 2**22  # of a question and a row: up to 100 bytes each while every row of a MEMORY is a candidate


@dataclass(frozen=True)
class Hit:
    """A row that a search found.

    Attributes:
        row_id: of MEMORY.
        score: the cosine for the published score, else z.
        sources: that found it among their best rows.
        contributions: what the memory and each feature add to z, in logits.
    """

    row_id: int
    score: float
    sources: tuple[FeatureName, ...]
    contributions: Mapping[FeatureName, float]


@dataclass(frozen=True)
class _Candidates:
    """Rows of one question, ascending, what found them, and their features by name."""

    rows: Sequence[int]
    found_by: Mapping[FeatureName, Collection[int]]
    features: Mapping[FeatureName, Sequence[float]]


def _found(
    rows: Sequence[int], features: Mapping[FeatureName, Sequence[float]], wanted: int
) -> dict[FeatureName, Collection[int]]:
    """The best rows by each feature, as its ranker finds them: BM25 finds no row without a common word."""
    ids, found = np.asarray(rows, np.int64), dict[FeatureName, Collection[int]]()
    for name, values in features.items():
        scores = np.asarray(values, np.float32)
        order = top(scores, wanted) if name == "bm25" else best(scores, ids, wanted)
        found[name] = frozenset(ids[order].tolist())
    return found


class FusedRanker:
    """Ranks rows by the fused score. A `Ranker`."""

    def __init__(
        self,
        rankers: Mapping[FeatureName, Ranker],
        fusion: Fusion,
        row_ids: Ids,
        retrieval: Retrieval,
    ) -> None:
        """Rank by a weighted sum of the scores of several rankers.

        Args:
            rankers: those with a weight, over the same rows.
            fusion: the weights.
            row_ids: all rows, ascending.
            retrieval: `candidates`, rows that a search takes from each ranker (k where more rows are asked for), and
                `exact_rows`: a MEMORY of so many rows or fewer is scored as a whole.

        Raises:
            ValueError: a ranker is missing.
        """
        memory: list[FeatureName] = ["memory"] if fusion.a else []
        wanted = [*memory, *fusion.features]
        if missing := set(wanted) - set(rankers):
            raise ValueError(f"no ranker for {sorted(missing)}")
        self._rankers = {name: rankers[name] for name in wanted}
        self._fusion, self._row_ids, self._settings = fusion, row_ids, retrieval
        self._exact = len(row_ids) <= retrieval.exact_rows  # every row is a candidate

    def rank(self, queries: Queries, k: int) -> list[list[int]]:
        """See `Ranker`."""
        return [[hit.row_id for hit in hits] for hits in self.hits(queries, k)]

    def score(self, queries: Queries, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Ranker`."""
        features = self.features(queries, rows)
        return [self._logits(own).tolist() for own in features]

    def features(self, queries: Queries, rows: Sequence[Sequence[int]]) -> list[dict[FeatureName, list[float]]]:
        """Cosines (`memory`) and features of given rows of each question, in their order."""
        values = {name: ranker.score(queries, rows) for name, ranker in self._rankers.items()}
        return [{name: of[number] for name, of in values.items()} for number in range(len(rows))]

    def hits(self, queries: Queries, k: int) -> list[list[Hit]]:
        """At most k rows of each question, by z, equal ones by row id."""
        number = len(queries.texts)
        step = max(1, _PAIRS_AT_ONCE // max(1, len(self._row_ids)) if self._exact else number)
        parts = (queries.part(begin, begin + step) for begin in range(0, number, step))
        return [self._best(candidates, k) for part in parts for candidates in self._candidates(part, k)]

    def hits_among(self, queries: Queries, rows: Sequence[int], k: int) -> list[list[Hit]]:
        """At most k of given rows for each question, by z; `sources` are empty, as every row is scored."""
        features = self.features(queries, [rows] * len(queries.texts))
        return [self._best(_Candidates(rows, {}, own), k) for own in features]

    def _candidates(self, queries: Queries, k: int) -> list[_Candidates]:
        wanted = max(k, self._settings.candidates)
        if self._exact:
            # The features of all rows say what each source finds: no source ranks them a second time.
            rows = [self._row_ids[~np.isin(self._row_ids, list(out))].tolist() for out in queries.excluded]
            rows = self._without_broken(queries, rows)
            every = self.features(queries, rows)
            return [_Candidates(own, _found(own, of, wanted), of) for own, of in zip(rows, every, strict=True)]
        found = {name: ranker.rank(queries, wanted) for name, ranker in self._rankers.items()}
        union = [sorted({row for lists in found.values() for row in lists[n]}) for n in range(len(queries.texts))]
        rows = self._without_broken(queries, union)
        return [
            _Candidates(own, {name: frozenset(lists[number]) for name, lists in found.items()}, of)
            for number, (own, of) in enumerate(zip(rows, self.features(queries, rows), strict=True))
        ]

    def _without_broken(self, queries: Queries, rows: Sequence[list[int]]) -> list[list[int]]:
        """The rows of each question; none if its query vector is not finite, as the memory alone finds none."""
        if queries.vectors is None or not self._fusion.a:
            return list(rows)
        finite = queries.vectors.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            _log.warning(
                "%d of %d queries are not finite, and nothing is found for them", finite.count(False), len(rows)
            )
        return [own if whole else [] for own, whole in zip(rows, finite, strict=True)]

    def _logits(self, features: Mapping[FeatureName, Sequence[float]]) -> Tensor:
        """Scores z of the rows of one question."""
        weights = self._fusion.features
        of = torch.tensor([list(features[name]) for name in weights]).T if weights else None
        count = len(next(iter(features.values())))
        cosine = torch.tensor(features["memory"]) if self._fusion.a else torch.zeros(count)
        return fused(cosine, of, self._fusion) / self._fusion.temperature

    def _best(self, candidates: _Candidates, k: int) -> list[Hit]:
        scores = self._logits(candidates.features)
        parts = contributions(candidates.features.get("memory", ()), candidates.features, self._fusion)
        # Rows ascend, so that a stable sort breaks ties by row id.
        order = torch.sort(scores, descending=True, stable=True).indices[:k].tolist()
        hits = []
        for position in order:
            row = candidates.rows[position]
            sources = tuple(name for name, rows in candidates.found_by.items() if row in rows)
            hits.append(Hit(row, float(scores[position]), sources, parts[position]))
        return hits
