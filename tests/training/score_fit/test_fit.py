"""Fitting the weights of the fused score: closed forms, a known optimum, and no gain from noise."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clara.data.utilities import Scored
from clara.errors import InputError
from training.score_fit.fit import cross_entropies, fit
from training.score_fit.targets import target_mass

ROWS = np.array([3, 5, 8, 13, 21])


def test_mass_is_the_utility_above_nothing() -> None:
    scored = Scored("q", (5, 13, 3), (-1.0, -3.0, -2.0 + np.log(3.0)), -2.0)
    mass = target_mass(scored, ROWS, 1.0)
    gains = np.array([2.0, np.e - 1, 0.0])  # exp(u) − 1 of rows 3, 5 and 13, whose utility is −1
    np.testing.assert_allclose(mass, np.array([gains[0], gains[1], 0, gains[2], 0]) / gains.sum())


def test_a_question_that_no_row_helps_has_no_target() -> None:
    assert target_mass(Scored("q", (3, 5), (-2.0, -9.0), -2.0), ROWS, 1.0) is None


def test_utilities_of_hundreds_of_nats_are_finite() -> None:
    mass = target_mass(Scored("q", (3, 5), (900.0, 899.0), -100.0), ROWS, 1.0)
    np.testing.assert_allclose(mass, [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0, 0, 0])


def problem(
    seed: int, questions: int = 200, rows: int = 40, weights: tuple[float, ...] = (3.0, 0.0, 0.5)
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
    """Features of different scales, and one right row of each question, drawn from the softmax of known weights."""
    rng = np.random.default_rng(seed)
    features = (rng.standard_normal((questions, rows, 3)) * [1.0, 10.0, 4.0]).astype(np.float32)
    z = features @ np.array(weights)
    drawn = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    return features, np.eye(rows)[drawn], np.ones((questions, rows), bool)


def test_it_finds_the_weights_that_drew_the_targets() -> None:
    features, mass, allowed = problem(0, questions=3000)
    found = fit(features, mass, allowed, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(found.weights, [3.0, 0.0, 0.5], rtol=0.08, atol=0.01)
    np.testing.assert_allclose(found.scales, [1.0, 10.0, 4.0], rtol=0.01)
    assert found.after < found.before
    assert found.after == pytest.approx(cross_entropies(features, mass, allowed, found.weights).mean())


def test_the_optimum_does_not_depend_on_the_start_nor_on_a_features_unit() -> None:
    features, mass, allowed = problem(1)
    one, other = fit(features, mass, allowed, (0.0, 0.0, 0.0)), fit(features, mass, allowed, (9.0, 2.0, 4.0))
    np.testing.assert_allclose(one.weights, other.weights, rtol=2e-3, atol=1e-3)
    scaled = fit(features * np.float32(100), mass, allowed, (0.0, 0.0, 0.0))
    np.testing.assert_allclose(scaled.weights * 100, one.weights, rtol=2e-3, atol=1e-3)


def test_the_gradient_is_zero_at_the_optimum_or_points_below_the_bound() -> None:
    features, mass, allowed = problem(2)
    weights = fit(features, mass, allowed, (1.0, 1.0, 1.0)).weights
    for number in range(3):
        step = np.zeros(3)
        step[number] = 1e-3
        up = cross_entropies(features, mass, allowed, weights + step).mean()
        here = cross_entropies(features, mass, allowed, weights).mean()
        assert up >= here - 1e-6


def test_excluded_rows_are_not_in_the_denominator() -> None:
    features, mass, allowed = problem(3, questions=5)
    allowed[:, 7], mass[:, 7] = False, 0
    mass /= mass.sum(axis=1, keepdims=True)
    less = [np.delete(a, 7, axis=1) for a in (features, mass, allowed)]
    weights = np.array([1.0, 0.1, 0.2])
    np.testing.assert_allclose(cross_entropies(features, mass, allowed, weights), cross_entropies(*less, weights))


def test_a_constant_feature_keeps_its_weight_and_others_that_are_not_finite_are_refused() -> None:
    features, mass, allowed = problem(4)
    features[..., 1] = 2.0
    assert fit(features, mass, allowed, (1.0, 0.25, 1.0)).weights[1] == pytest.approx(0.25)
    features[3, 2, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        fit(features, mass, allowed, (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="no feature distinguishes rows"):
        fit(np.ones_like(features), mass, allowed, (1.0, 1.0, 1.0))


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match=r"fitted weights \[nan, .*\] are not finite"):
        fit(*problem(5, questions=5), (np.nan, 1.0, 1.0))
    with pytest.raises(InputError, match="utilities of question 'q': a likelihood is not finite"):
        target_mass(Scored("q", (3, 5), (-2.0, np.nan), -2.0), ROWS, 1.0)
