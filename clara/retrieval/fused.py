"""Ranking by the fused score: candidates of every source that has a weight, each scored with every feature.

A search unites the best rows of each source, at most `retrieval.candidates` of each, or takes every row of a small
MEMORY. It then computes z = a · cosine/τ + Σ w · feature (`clara.model.fusion`) of all of them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clara.arrays import Ids
from clara.config.model import FeatureName, Fusion
from clara.config.tree import Retrieval
from clara.model.fusion import contributions, fused
from clara.retrieval.ranker import Queries, Ranker


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


class FusedRanker:
    """Ranks rows by the fused score. A `Ranker`."""

    def __init__(
        self,
        rankers: Mapping[FeatureName, Ranker],
        fusion: Fusion,
        row_ids: Ids,
        retrieval: Retrieval,
    ) -> None:
        """Rank by rankers and their weights.

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
        return [self._best(candidates, k) for candidates in self._candidates(queries, k)]

    def _candidates(self, queries: Queries, k: int) -> list[_Candidates]:
        found = {
            name: ranker.rank(queries, max(k, self._settings.candidates)) for name, ranker in self._rankers.items()
        }
        rows: list[list[int]] = []
        vectors = queries.vectors if self._fusion.a else None
        for number, excluded in enumerate(queries.excluded):
            if vectors is not None and not bool(vectors[number].isfinite().all()):
                rows.append([])  # nothing is found for it, as with the memory alone, which has logged a warning
            elif len(self._row_ids) <= self._settings.exact_rows:
                rows.append(self._row_ids[~np.isin(self._row_ids, list(excluded))].tolist())
            else:
                rows.append(sorted({row for lists in found.values() for row in lists[number]}))
        features = self.features(queries, rows)
        return [
            _Candidates(own, {name: frozenset(lists[number]) for name, lists in found.items()}, features[number])
            for number, own in enumerate(rows)
        ]

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
        for place in order:
            row = candidates.rows[place]
            sources = tuple(name for name, rows in candidates.found_by.items() if row in rows)
            hits.append(Hit(row, float(scores[place]), sources, parts[place]))
        return hits
