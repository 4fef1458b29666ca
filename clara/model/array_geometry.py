"""The part of the score's geometry that needs NumPy only; `clara.model.geometry` has the definitions and the shapes."""

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from clara.arrays import Floats
from clara.config.model import Score

if TYPE_CHECKING:
    from torch import Tensor

Vectors = TypeVar("Vectors", "Tensor", Floats)
PUBLISHED = Score()
"""The score of the paper (Eq. 3.1 of arXiv:2511.18659): cosine of the flattened vectors."""

# A difference that is shorter than this share of the mean consists of rounding errors. Its direction means nothing.
_ROUNDING = 1e-6


def pool(vectors: Vectors, score: Score) -> Vectors:
    """Pool vectors `[…, M, D]` to `[…, F]`."""
    if score.pooling == "slot_mean":
        return vectors.mean(-2)
    return vectors.reshape(*vectors.shape[:-2], vectors.shape[-2] * vectors.shape[-1])


def centre(pooled: Vectors, mean: Vectors) -> Vectors:
    """Subtract a mean `[F]` from vectors `[…, F]`.

    A vector that equals the mean, up to rounding, becomes zero: it scores 0 with everything, and its gradient is 0.
    """
    difference = pooled - mean
    square = (difference * difference).sum(-1)
    longer = square > _ROUNDING**2 * (mean * mean).sum(-1)
    centred: Vectors = difference * longer[..., None]
    return centred


def unit_rows(memory: Floats, score: Score = PUBLISHED, mean: Floats | None = None) -> Floats:
    """`clara.model.geometry.represent` for arrays: unit vectors `[n, F]` of memories or query vectors `[n, M, D]`.

    Each row is computed by itself: its bits do not depend on the other rows.
    """
    return unit_pooled(pool(memory, score), None if mean is None else pool(mean, score))


def unit_pooled(pooled: Floats, mean: Floats | None = None) -> Floats:
    """Unit vectors of pooled ones `[n, F]`, after subtraction of a pooled mean `[F]`; a zero vector stays zero."""
    if mean is not None:
        pooled = centre(pooled, mean)
    norms: Floats = np.sqrt(np.square(pooled).sum(axis=1, keepdims=True))
    return np.divide(pooled, norms, out=np.zeros_like(pooled), where=norms > 0)
