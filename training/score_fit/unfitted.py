"""Weights of the fused score before anything is fitted, from statistics of scores: no label and no reader.

A source's lead is how far its best row is above its 100 best on average. Weights give every source the same lead, so
that none drowns the others. The memory of a start that was never trained may find nothing: it counts as far as its best
rows are also those of the other sources, which are retrievers by themselves.

Shapes: Q questions, N rows of MEMORY, F features.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clara.config.model import FeatureName

LEAD = 5.0
"""Lead of a source in logits: its best row is e⁵ times as likely as one of its 100 best."""
_DEPTH, _OVERLAP = 100, 20


def statistical_weights(
    names: Sequence[FeatureName], features: NDArray[np.float32], allowed: NDArray[np.bool_]
) -> dict[FeatureName, float]:
    """Weights of features by name; that of a source whose best rows are no better than the others is 0.

    Args:
        names: of the features, in their order.
        features: `[Q, N, F]`, of unlabelled questions.
        allowed: `[Q, N]`, false for rows that a question excludes.
    """
    ranked = [_first(features[..., number], allowed) for number in range(len(names))]
    leads = [_lead(scores) for _, scores in ranked]
    weights = {name: LEAD / lead if lead > 0 else 0.0 for name, lead in zip(names, leads, strict=True)}
    others = [rows for name, (rows, _) in zip(names, ranked, strict=True) if name != "memory"]
    if "memory" in weights and others:
        own = ranked[list(names).index("memory")][0]
        weights["memory"] *= max(_overlap(own, rows) for rows in others)
    return weights


def _first(scores: NDArray[np.float32], allowed: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The first rows of each question `[Q, ≤ 100]`, best first, and their scores."""
    masked = np.where(allowed, scores, -np.inf)
    depth = min(_DEPTH, int(allowed.sum(axis=1).min()))
    rows = np.argsort(-masked, axis=1, kind="stable")[:, :depth]
    return rows, np.take_along_axis(masked, rows, axis=1)


def _lead(scores: NDArray[np.float32]) -> float:
    return float((scores[:, 0] - scores.mean(axis=1)).mean())


def _overlap(one: NDArray[np.intp], other: NDArray[np.intp]) -> float:
    """Share of the first 20 rows that two sources have in common, averaged over questions."""
    pairs = zip(one[:, :_OVERLAP], other[:, :_OVERLAP], strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in pairs]))
