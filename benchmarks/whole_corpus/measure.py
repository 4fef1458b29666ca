"""Rank every row of a MEMORY by each source, by sums of sources and by fitted scores, and compare them.

Shapes: Q questions, N rows of MEMORY, F features.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clara.config.model import FeatureName
from clara.data.questions import Question
from clara.intervals import grouped_interval
from clara.metrics import ranking_metrics
from clara.retrieval.ranker import Ranker
from clara.retrieval.retriever import Retriever
from training.score_fit.run import features_and_allowed

CUTOFFS = (1, 5, 20)


@dataclass(frozen=True)
class Scores:
    """Every feature of every row for some questions.

    Attributes:
        questions: Q of them, each with a known positive.
        features: `[Q, N, F]`; the memory's is cosine/τ.
        allowed: `[Q, N]`, false for rows that a question excludes.
        documents: of the rows `[N]`.
    """

    questions: Sequence[Question]
    features: NDArray[np.float32]
    allowed: NDArray[np.bool_]
    documents: Sequence[str]

    def measures(self, weights: Sequence[float]) -> dict[str, NDArray[np.float64]]:
        """`recall@k` and `mrr` of each question `[Q]` if rows are ranked by a weighted sum; ties by row id."""
        rankings = []
        for features, allowed in zip(self.features, self.allowed, strict=True):
            z = np.where(allowed, features @ np.array(weights), -np.inf)
            order = np.argsort(-z, kind="stable")[: int(allowed.sum())]
            rankings.append(list(dict.fromkeys(self.documents[row] for row in order)))
        found = ranking_metrics(rankings, [q.positive_ids for q in self.questions], CUTOFFS)
        return {name: found[name] for name in (*(f"recall@{k}" for k in CUTOFFS), "mrr")}

    @property
    def targets(self) -> NDArray[np.int64]:
        """Number of each question's first target `[Q]`: questions of one target are no independent samples."""
        return np.unique([q.positive_ids[0] for q in self.questions], return_inverse=True)[1]


def scores_of(retriever: Retriever, rankers: Mapping[FeatureName, Ranker], questions: Sequence[Question]) -> Scores:
    """Score every row for questions."""
    with tempfile.TemporaryDirectory() as scratch:
        mapped, allowed = features_and_allowed(retriever, rankers, questions, Path(scratch))
        features = np.array(mapped)
    return Scores(questions, features, allowed, retriever.store.document_ids)


def difference(
    a: NDArray[np.float64], b: NDArray[np.float64], targets: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Mean of a − b over questions, and its 95 % interval by a bootstrap that resamples targets.

    Args:
        a: a measure of each question `[Q]`.
        b: the same of another system.
        targets: the target of each question `[Q]`; questions of one target are drawn together.
    """
    return float(np.mean(a - b)), *grouped_interval(a - b, targets)
