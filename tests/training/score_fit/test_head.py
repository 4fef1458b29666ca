"""Weights that depend on the query: better where two kinds of question need different sources, and nowhere else."""

import numpy as np
import pytest

from training.score_fit.head import Problem, compared, fit_head, scaled_queries


def world(seed: int, *, two_kinds: bool, questions: int = 240, rows: int = 30, size: int = 6) -> Problem:
    """Questions of two kinds, which differ in the first number of their vectors.

    The right row is drawn by the first feature for one kind and by the second for the other; with one kind, by both.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=questions)
    vectors = rng.standard_normal((questions, 2, size)).astype(np.float32) * 0.3
    vectors[..., 0] += (4 * kind - 2)[:, None]
    weights = np.where(kind[:, None] == 0, [4.0, 0.0], [0.0, 4.0]) if two_kinds else np.full((questions, 2), 2.0)
    features = (rng.standard_normal((questions, rows, 2)) * [1.0, 10.0]).astype(np.float32)
    z = (features * (weights / [1.0, 10.0])[:, None]).sum(axis=2)
    mass = np.eye(rows)[(z + rng.gumbel(size=z.shape)).argmax(axis=1)]
    targets = [f"document {number % 80}" for number in range(questions)]
    return Problem(features, mass, np.ones((questions, rows), bool), scaled_queries(vectors), targets)


def test_a_head_is_better_where_two_kinds_of_question_need_different_sources() -> None:
    problem = world(0, two_kinds=True)
    mean, low, high = compared(problem, 0.03)
    assert low < mean < high < -0.3
    v, h = fit_head(problem, 0.03)
    weights = v * np.exp(problem.queries @ h.T) * [1.0, 10.0]
    first = problem.queries[:, 0] < 0
    assert weights[first, 0].mean() > 4 * weights[first, 1].mean()
    assert weights[~first, 1].mean() > 4 * weights[~first, 0].mean()


def test_a_head_is_not_better_where_all_questions_need_the_same() -> None:
    assert compared(world(1, two_kinds=False), 0.3)[2] > -0.01


def test_a_large_penalty_leaves_no_head() -> None:
    v, h = fit_head(world(2, two_kinds=True, questions=60), 1e6)
    assert np.abs(h).max() < 1e-5
    assert (v >= 0).all()


def test_questions_of_one_vector_give_zeros() -> None:
    assert not scaled_queries(np.ones((3, 2, 4), np.float32)).any()
    assert np.square(scaled_queries(np.eye(4, dtype=np.float32)[:, None])).sum(axis=1).mean() == pytest.approx(1)
