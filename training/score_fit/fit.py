"""The weights of z = Σ_f v_f · feature_f/scale_f that give a target distribution the least cross-entropy.

The loss is convex in v, so that the few weights have one best value; they are bounded by 0.

Shapes: Q questions, N rows of MEMORY, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clara.errors import InputError

_ITERATIONS = 200


@dataclass(frozen=True)
class Fit:
    """A fit.

    Attributes:
        weights: of the features as they are given `[F]`: w_f = v_f / scale_f.
        scales: standard deviation of each feature over all questions and rows `[F]`.
        before: mean cross-entropy with the weights that the fit began with, in nats a question.
        after: the same with the fitted ones.
    """

    weights: NDArray[np.float64]
    scales: NDArray[np.float64]
    before: float
    after: float


def cross_entropies(
    features: NDArray[np.float32], mass: NDArray[np.float64], allowed: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cross-entropy −Σ_n mass_n · log softmax(z)_n of each question `[Q]`, in nats.

    Args:
        features: `[Q, N, F]`.
        mass: `[Q, N]`, each row sums to 1.
        allowed: `[Q, N]`, false for rows that the question excludes.
        weights: `[F]`, or `[Q, F]`: of each question.
    """
    every = np.broadcast_to(weights, (len(features), features.shape[-1]))
    return np.array([loss_of(*of)[0] for of in zip(features, mass, allowed, every, strict=True)])


def loss_of(
    features: NDArray[np.float32], mass: NDArray[np.float64], allowed: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Cross-entropy of one question, and its gradient by the weights: Σ_n (softmax(z)_n − mass_n) · feature_n."""
    z = np.where(allowed, features @ weights, -np.inf)
    shifted = np.exp(z - z.max())
    total = shifted.sum()
    log_softmax = z - z.max() - np.log(total)
    loss = -float((mass[allowed] * log_softmax[allowed]).sum())
    return loss, (shifted / total - mass) @ features


def fit(
    features: NDArray[np.float32],
    mass: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    start: Sequence[float],
) -> Fit:
    """Fit the weights.

    Args:
        features: `[Q, N, F]`; may be mapped from a file.
        mass: see `cross_entropies`.
        allowed: see `cross_entropies`.
        start: weights to begin with `[F]`, not negative.

    Raises:
        InputError: a feature or a fitted weight is not finite, or every feature has one value for all rows.
    """
    from scipy.optimize import minimize  # takes a while to import

    flat = features.reshape(-1, features.shape[-1])
    if not np.isfinite(flat).all():
        raise InputError("a feature of a row is not finite; the INDEX or the MEMORY is damaged, or the model diverged")
    scales = flat.std(axis=0, dtype=np.float64)
    if not (scales > 0).any():
        raise InputError("every feature has one value for all rows: no feature distinguishes rows")
    units = np.where(scales > 0, scales, 1.0)  # a constant feature keeps its weight: it changes no order

    def objective(v: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        every = [loss_of(*of, v / units) for of in zip(features, mass, allowed, strict=True)]
        losses, gradients = zip(*every, strict=True)
        return float(np.mean(losses)), np.mean(gradients, axis=0) / units

    first = np.maximum(np.asarray(start, np.float64), 0) * units
    found = minimize(
        objective, first, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(first), options={"maxiter": _ITERATIONS}
    )
    if not np.isfinite(found.x).all():
        raise InputError(
            f"fitted weights {(found.x / units).tolist()} are not finite: the utilities or the weights that the fit "
            f"began with, {list(start)}, are not; score the questions again with a model whose loss is finite"
        )
    return Fit(found.x / units, scales, objective(first)[0], float(found.fun))
