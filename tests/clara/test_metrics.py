"""Metrics: published vectors, closed forms, brute-force twins."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from clara.errors import InputError
from clara.intervals import bootstrap_interval, paired_test
from clara.metrics import (
    answer_metrics,
    cover_match,
    exact_match,
    f1,
    ndcg,
    normalise_answer,
    ranking_metrics,
    substring_match,
)

# Prediction, answer, cover, exact, F1, substring: all but the last as the published implementation gives them.
VECTORS = [
    ("The answer is Barack Obama.", "Obama Barack", 1, 0, 2 / 3, 0),
    ("Paris, France", "paris", 1, 0, 2 / 3, 1),
    ("yes it is", "yes", 1, 0, 0, 1),
    ("New York", "York New", 1, 0, 1, 0),
    ("", "the", 1, 1, 0, 1),
    ("Yes.", "yes", 1, 1, 1, 1),
    ("True", "yes", 1, 1, 1, 1),
    ("no", "False", 1, 1, 1, 1),
    ("true", "yes", 0, 0, 0, 0),
    ("Newark", "New", 0, 0, 0, 0),
]


@pytest.mark.parametrize(("prediction", "answer", "cover", "exact", "overlap", "substring"), VECTORS)
def test_V10_answer_vectors(
    prediction: str, answer: str, cover: float, exact: float, overlap: float, substring: float
) -> None:
    assert cover_match(prediction, [answer]) == cover
    assert exact_match(prediction, [answer]) == exact
    assert f1(prediction, [answer]) == pytest.approx(overlap)
    assert substring_match(prediction, [answer]) == substring


def test_normal_form() -> None:
    assert normalise_answer("  The U.S.A.,\tan  Apple—a day ") == "usa apple— day"
    assert normalise_answer("Theatre another") == "theatre another"


def test_the_best_wording_counts() -> None:
    metrics = answer_metrics(["December 1972", "moon"], [["14 December 1972 UTC", "December 1972"], ["sun"]])
    assert metrics["exact_match"].tolist() == [1, 0]
    assert metrics["f1"].tolist() == [1, 0]


def test_f1_counts_repeated_words_once_each() -> None:
    # Two of three predicted words match both words of the answer: P = 2/3, R = 1.
    assert f1("bora bora island", ["bora bora"]) == pytest.approx(0.8)
    assert f1("bora island", ["bora bora"]) == pytest.approx(0.5)


def test_answers_must_be_a_list() -> None:
    with pytest.raises(InputError, match="expected a list"):
        exact_match("x", "x")
    with pytest.raises(InputError, match="at least one"):
        exact_match("x", [])


def test_V10_ranking_vectors() -> None:
    values = ranking_metrics([[1, 0, 3], [2, 1, 3]], [[1], [0, 2]], (1, 3, 5))
    means = {name: v.mean() for name, v in values.items()}
    assert [means[f"recall@{k}"] for k in (1, 3, 5)] == pytest.approx([0.75, 0.75, 0.75])
    assert [means[f"precision@{k}"] for k in (1, 3, 5)] == pytest.approx([1, 1 / 3, 0.2])


@pytest.mark.slow  # ranx compiles for a minute
@pytest.mark.filterwarnings("ignore:unsafe cast")
def test_rankings_equal_those_of_ranx() -> None:
    ranx = pytest.importorskip("ranx", reason="extra `dev` is not installed")
    rng = np.random.default_rng(1)
    rankings = [rng.permutation(30)[: int(rng.integers(1, 12))].tolist() for _ in range(99)]
    positives = [rng.permutation(30)[: int(rng.integers(1, 5))].tolist() for _ in range(99)]
    qrels = ranx.Qrels({f"{n:02d}": {str(d): 1 for d in right} for n, right in enumerate(positives)})
    found = ranx.Run(
        {f"{n:02d}": {str(d): float(-place) for place, d in enumerate(ranking)} for n, ranking in enumerate(rankings)}
    )
    ours = ranking_metrics(rankings, positives, (1, 5))
    assert {"mrr@1", "mrr@5", "mrr", "recall@5", "precision@5"} <= ours.keys()
    theirs = ranx.evaluate(qrels, found, list(ours), return_mean=False)
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], err_msg=name)


def test_ndcg_is_the_gain_over_that_of_the_best_ranking() -> None:
    grades = {"a": 2.0, "b": 1.0}
    found = ndcg([["b", "x", "a"], ["a", "b"], ["x"]], [grades] * 3, 10)
    best = 2 + 1 / math.log2(3)
    np.testing.assert_allclose(found, [(1 + 2 / math.log2(4)) / best, 1, 0])
    assert ndcg([["x", "a"]], [grades], 1).tolist() == [0.0]
    assert ndcg([["b"]], [grades], 1).tolist() == [0.5]  # the best of one place is "a"
    rng = np.random.default_rng(1)
    for _ in range(50):
        gains = {int(d): float(rng.integers(1, 4)) for d in rng.permutation(30)[: int(rng.integers(1, 20))]}
        ranking = rng.permutation(30)[: int(rng.integers(0, 30))].tolist()
        gain = sum(gains.get(d, 0) / math.log2(p + 1) for p, d in enumerate(ranking[:10], 1))
        ideal = sum(g / math.log2(p + 1) for p, g in enumerate(sorted(gains.values(), reverse=True)[:10], 1))
        np.testing.assert_allclose(ndcg([ranking], [gains], 10), [gain / ideal])
    with pytest.raises(InputError, match="1 rankings for 0 questions"):
        ndcg([["a"]], [], 10)
    with pytest.raises(InputError, match="question 0: no positive document"):
        ndcg([["a"]], [{}], 10)


def test_ranking_equals_the_definitions_in_the_questions_order() -> None:
    rng = np.random.default_rng(1)
    rankings = [rng.permutation(30)[: int(rng.integers(0, 12))].tolist() for _ in range(123)]
    positives = [rng.permutation(30)[: int(rng.integers(1, 5))].tolist() for _ in range(123)]
    values = ranking_metrics(rankings, positives, (1, 5))
    for number, (ranking, right) in enumerate(zip(rankings, positives, strict=True)):
        for k in (1, 5):
            hits = len(set(ranking[:k]) & set(right))
            assert values[f"recall@{k}"][number] == pytest.approx(hits / len(right))
            assert values[f"precision@{k}"][number] == pytest.approx(hits / k)
            early = next((1 / place for place, d in enumerate(ranking[:k], 1) if d in right), 0.0)
            assert values[f"mrr@{k}"][number] == pytest.approx(early)
        first = next((1 / place for place, d in enumerate(ranking, 1) if d in right), 0.0)
        assert values["mrr"][number] == pytest.approx(first)


def test_bad_rankings_are_refused() -> None:
    with pytest.raises(InputError, match="no positive"):
        ranking_metrics([[1]], [[]])
    with pytest.raises(InputError, match="twice"):
        ranking_metrics([[1, 1]], [[1]])


def test_interval_of_a_coin_is_near_the_normal_one_and_repeats() -> None:
    values = np.array([0.0, 1.0] * 200)
    low, high = bootstrap_interval(values, seed=3)
    half = 1.96 * 0.5 / np.sqrt(len(values))
    assert low == pytest.approx(0.5 - half, abs=0.01)
    assert high == pytest.approx(0.5 + half, abs=0.01)
    assert (low, high) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval([0.25] * 4) == (0.25, 0.25)


def test_paired_test_equals_all_sign_flips() -> None:
    a, b = np.array([0.9, 0.4, 0.8, 0.7, 0.6, 0.9, 0.3]), np.array([0.1, 0.5, 0.3, 0.6, 0.2, 0.4, 0.2])
    difference = a - b
    flips = [
        abs(np.mean(difference * signs)) >= abs(difference.mean()) - 1e-12
        for signs in itertools.product((1, -1), repeat=7)
    ]
    found = paired_test(a, b)
    assert found.p_value == pytest.approx(np.mean(flips))
    assert found.difference == pytest.approx(difference.mean())
    assert found.low < found.difference < found.high
    assert found.num_questions == 7


@pytest.mark.parametrize("number", [2, 9, 60])
def test_paired_test_is_the_permutation_test_of_scipy(number: int) -> None:
    rng = np.random.default_rng(number)
    a, b = rng.integers(0, 3, number).astype(float), rng.integers(0, 3, number) - 0.2
    theirs = scipy.stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    # Few questions have all their patterns counted; of many both draw 9,999, each its own.
    assert paired_test(a, b).p_value == pytest.approx(theirs.pvalue, abs=1e-12 if number < 12 else 0.02)


def test_paired_test_of_equal_systems_finds_nothing() -> None:
    assert paired_test([0, 1, 1], [0, 1, 1]).p_value == 1
    rng = np.random.default_rng(0)
    assert paired_test(rng.normal(size=200), rng.normal(size=200)).p_value > 0.01


def test_bad_values_are_refused() -> None:
    with pytest.raises(InputError, match="same questions"):
        paired_test([1, 2], [1])
    with pytest.raises(InputError, match="finite"):
        bootstrap_interval([float("nan")])
