"""Scores of rows and their order; without FAISS."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clara.arrays import Floats, Ids

Ranked = tuple[Ids, Floats]
"""Row ids and their scores, best first, equal scores by ascending id."""


def best(scores: Floats, row_ids: Ids, k: int) -> NDArray[np.intp]:
    """Positions of the k best, by descending score, equal scores by ascending `row_id`."""
    return np.lexsort((row_ids, -scores))[:k]


def merged(parts: Sequence[Ranked]) -> Ranked:
    """One ranking of the rows of several."""
    ids, scores = np.concatenate([ids for ids, _ in parts]), np.concatenate([scores for _, scores in parts])
    order = best(scores, ids, len(ids))
    return ids[order], scores[order]
