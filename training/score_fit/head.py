"""Weights that depend on the query, compared with weights that do not.

w_f(q) = v_f · exp(h_f · x_q), where x_q is the mean of the query vector over the memory tokens, centred over the
questions and scaled to a mean square of 1. Weights stay positive, and h = 0 gives those of `training.score_fit.fit`,
where the fit begins. The loss has the penalty λ · Σ h² in addition. It is convex in v alone.

Shapes: Q questions, N rows of MEMORY, F features, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clara.intervals import grouped_interval
from clara.storage.manifest import hash_of
from training.score_fit.fit import cross_entropies, fit, loss_of

PENALTIES = (0.03, 0.3, 3.0)
_FOLDS, _ITERATIONS = 5, 100


@dataclass(frozen=True)
class Problem:
    """What weights are fitted to.

    Attributes:
        features: `[Q, N, F]`.
        mass: target distributions `[Q, N]`.
        allowed: `[Q, N]`, false for rows that a question excludes.
        queries: x `[Q, D]`.
        targets: of the questions; those of one target are in one fold.
    """

    features: NDArray[np.float32]
    mass: NDArray[np.float64]
    allowed: NDArray[np.bool_]
    queries: NDArray[np.float64]
    targets: Sequence[str]

    def part(self, chosen: NDArray[np.bool_]) -> "Problem":
        """The same for some of the questions."""
        targets = [target for target, there in zip(self.targets, chosen, strict=True) if there]
        return Problem(self.features[chosen], self.mass[chosen], self.allowed[chosen], self.queries[chosen], targets)


def scaled_queries(vectors_QMD: NDArray[np.float32]) -> NDArray[np.float64]:
    """X `[Q, D]` of query vectors `[Q, M, D]`; zero where all questions have one vector."""
    pooled = vectors_QMD.mean(axis=1, dtype=np.float64)
    pooled -= pooled.mean(axis=0)
    size = np.sqrt(np.square(pooled).sum(axis=1).mean())
    scaled: NDArray[np.float64] = pooled / size if size > 0 else pooled
    return scaled


def fit_head(problem: Problem, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """V `[F]` and h `[F, D]` of the least loss.

    Args:
        problem: the questions.
        penalty: λ.

    Raises:
        InputError: see `fit`.
    """
    from scipy.optimize import minimize  # takes a while to import

    num_features, size = problem.features.shape[-1], problem.queries.shape[1]
    without = fit(problem.features, problem.mass, problem.allowed, [1.0] * num_features)
    units = np.where(without.scales > 0, without.scales, 1.0)

    def objective(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        head = parameters[num_features:].reshape(num_features, size)
        factors_QF = np.exp(problem.queries @ head.T) / units
        weights_QF = parameters[:num_features] * factors_QF
        rows = zip(problem.features, problem.mass, problem.allowed, weights_QF, strict=True)
        losses, gradients = zip(*(loss_of(*row) for row in rows), strict=True)
        gradient_QF = np.array(gradients)
        of_v = (gradient_QF * factors_QF).mean(axis=0)
        of_h = (gradient_QF * weights_QF).T @ problem.queries / len(losses) + 2 * penalty * head
        return float(np.mean(losses)) + penalty * float(np.square(head).sum()), np.concatenate([of_v, of_h.ravel()])

    first = np.concatenate([without.weights * units, np.zeros(num_features * size)])
    bounds = [(0, None)] * num_features + [(None, None)] * (num_features * size)
    found = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _ITERATIONS})
    return found.x[:num_features] / units, found.x[num_features:].reshape(num_features, size)


def compared(problem: Problem, penalty: float) -> tuple[float, float, float]:
    """Cross-entropy with a head minus that without, in nats a question, with its 95 % interval by a bootstrap.

    Each question is measured by weights that were fitted to four other fifths of the targets; the bootstrap resamples
    targets. A negative number says that the head is better.

    Raises:
        InputError: see `fit`.
    """
    folds = np.array([int(hash_of(["head", target])[:12], 16) % _FOLDS for target in problem.targets])
    differences = np.zeros(len(folds))
    for number in set(folds.tolist()):
        held = folds == number
        of, measured = problem.part(~held), problem.part(held)
        v, h = fit_head(of, penalty)
        constant = fit(of.features, of.mass, of.allowed, v.tolist()).weights
        given = (measured.features, measured.mass, measured.allowed)
        with_head = cross_entropies(*given, v * np.exp(measured.queries @ h.T))
        differences[held] = with_head - cross_entropies(*given, constant)
    _, group = np.unique(problem.targets, return_inverse=True)
    return float(differences.mean()), *grouped_interval(differences, group)
