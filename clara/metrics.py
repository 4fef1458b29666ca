"""Metrics of answers and of rankings, one value a question; intervals and paired tests over questions."""

import functools
import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clara.errors import InputError

Values = NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# As the published CLaRa reads what a model may say in a programmer's words.
_BOOLEANS = {"True": "yes", "False": "no"}
# Answers that are right or wrong as a whole: "yes it is" shares no credit with "yes".
_CLOSED = frozenset({"yes", "no", "noanswer"})
# Sign patterns that are in memory at once.
_PATTERNS_AT_ONCE = 1024
_RESAMPLES_AT_ONCE = 256


# --- answers ---------------------------------------------------------------------------------------------------------


def normalise_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation or articles, single spaces; `True` is yes, `False` no."""
    return " ".join(_ARTICLES.sub(" ", _BOOLEANS.get(text, text).lower().translate(_PUNCTUATION)).split())


def _exact(prediction: str, answer: str) -> float:
    return float(prediction == answer)


def _f1(prediction: str, answer: str) -> float:
    if prediction != answer and (prediction in _CLOSED or answer in _CLOSED):
        return 0.0
    ours, theirs = prediction.split(), answer.split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _cover(prediction: str, answer: str) -> float:
    return float(set(answer.split()) <= set(prediction.split()))


def _substring(prediction: str, answer: str) -> float:
    return float(f" {answer} " in f" {prediction} ")


def _best(measure: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    """The best value over an answer's wordings, all in normal form."""
    if isinstance(answers, str) or not answers:
        raise InputError(f"answers are {answers!r}; expected a list of at least one accepted wording")
    normal = normalise_answer(prediction)
    return max(measure(normal, normalise_answer(answer)) for answer in answers)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the normal forms are equal, for the best of the wordings; else 0."""
    return _best(_exact, prediction, answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Word F1 with the best wording; 0 if only one of prediction and wording is yes, no or noanswer."""
    return _best(_f1, prediction, answers)


def cover_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction contains every word of a wording, in any order; the accuracy of the published CLaRa."""
    return _best(_cover, prediction, answers)


def substring_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where a wording occurs in the prediction as a run of whole words; stricter than `cover_match`."""
    return _best(_substring, prediction, answers)


ANSWER_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "cover_match": cover_match,
    "substring_match": substring_match,
}


def answer_metrics(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, Values]:
    """Every answer metric by name, `[questions]` each."""
    if len(predictions) != len(answers):
        raise InputError(f"{len(predictions)} predictions for {len(answers)} questions; expected one for each")
    pairs = list(zip(predictions, answers, strict=True))
    return {name: np.array([measure(p, a) for p, a in pairs], np.float64) for name, measure in ANSWER_METRICS.items()}


# --- rankings --------------------------------------------------------------------------------------------------------


def ranking_metrics(
    rankings: Sequence[Sequence[Hashable]],
    positives: Sequence[Collection[Hashable]],
    cutoffs: Sequence[int] = (1, 5, 20),
) -> dict[str, Values]:
    """`recall@k`, `precision@k` and `mrr@k` for each cut-off, and `mrr` over the whole ranking, `[questions]` each.

    Recall: share of the right documents among the first k. Precision: share of right ones among k places, empty ones
    too. Reciprocal rank: 1 / place of the first right one, 0 where there is none (or none among the first k).

    Args:
        rankings: document ids, best first, each once.
        positives: right ids, at least one a question.
        cutoffs: the k, each at least 1.

    Raises:
        InputError: the lengths differ, a cut-off is under 1, a question has no positive, or a ranking names a document
            twice.
    """
    if len(rankings) != len(positives):
        raise InputError(f"{len(rankings)} rankings for {len(positives)} questions; expected one for each")
    if any(k < 1 for k in cutoffs):
        raise InputError(f"cutoffs are {list(cutoffs)}; expected each at least 1")
    names = [f"{measure}@{k}" for k in cutoffs for measure in ("recall", "precision", "mrr")]
    values = {name: np.zeros(len(rankings)) for name in [*names, "mrr"]}
    for number, (ranking, positive) in enumerate(zip(rankings, positives, strict=True)):
        right = set(positive)
        if not right:
            raise InputError(f"question {number}: no positive document, so recall is undefined; leave it out")
        if len(set(ranking)) != len(ranking):
            raise InputError(f"question {number}: a document occurs twice in its ranking; keep its best place only")
        places = [place for place, document in enumerate(ranking, 1) if document in right]
        for k in cutoffs:
            hits = sum(place <= k for place in places)
            values[f"recall@{k}"][number] = hits / len(right)
            values[f"precision@{k}"][number] = hits / k
            values[f"mrr@{k}"][number] = 1 / places[0] if hits else 0.0
        values["mrr"][number] = 1 / places[0] if places else 0.0
    return values


def ndcg(rankings: Sequence[Sequence[Hashable]], gains: Sequence[Mapping[Any, float]], cutoff: int) -> Values:
    """Normalised discounted cumulative gain among the first documents of each ranking, `[questions]`.

    The sum of gain / log2(1 + place) over the first `cutoff` places, divided by that of the best ranking there is. The
    gain of a document is its grade, as in trec_eval and BEIR.

    Args:
        rankings: document ids, best first, each once.
        gains: grade above 0 of each right document; others have 0.
        cutoff: places that count, at least 1.

    Raises:
        InputError: the lengths differ, or a question has no right document.
    """
    if len(rankings) != len(gains):
        raise InputError(f"{len(rankings)} rankings for {len(gains)} questions; expected one for each")
    discounts = 1 / np.log2(np.arange(2, cutoff + 2))
    values = np.zeros(len(rankings))
    for number, (ranking, grades) in enumerate(zip(rankings, gains, strict=True)):
        if not grades:
            raise InputError(f"question {number}: no positive document, so nDCG is undefined; leave it out")
        best = np.sort([*grades.values()])[::-1][:cutoff]
        found = [grades.get(document, 0.0) for document in ranking[:cutoff]]
        values[number] = discounts[: len(found)] @ found / (discounts[: len(best)] @ best)
    return values


# --- over questions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedTest:
    """Mean difference of two systems on the same questions, its interval, and its probability under chance."""

    difference: float
    low: float
    high: float
    p_value: float
    num_questions: int


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, level: float = 0.95, num_resamples: int = 9999
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over questions.

    Raises:
        InputError: no value, or one that is not finite.
    """
    sample = _finite(values, "values")
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    return _bootstrap(sample.tobytes(), seed, level, num_resamples)


# Many measures of one evaluation have equal values: recall, precision and reciprocal rank at 1, or a retriever's under
# each generator.
@functools.lru_cache(4096)
def _bootstrap(values: bytes, seed: int, level: float, num_resamples: int) -> tuple[float, float]:
    result = _extra("scipy.stats").bootstrap(
        (np.frombuffer(values, np.float64),),
        np.mean,
        n_resamples=num_resamples,
        batch=256,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def grouped_interval(
    values: ArrayLike, groups: ArrayLike, seed: int = 0, level: float = 0.95, num_resamples: int = 9999
) -> tuple[float, float]:
    """`bootstrap_interval` that draws the questions of a group (of one target) together; groups are numbers from 0."""
    numbers = np.asarray(groups, np.int64)
    return _grouped(_finite(values, "values").tobytes(), numbers.tobytes(), seed, level, num_resamples)


@functools.lru_cache(4096)
def _grouped(values: bytes, groups: bytes, seed: int, level: float, num_resamples: int) -> tuple[float, float]:
    numbers = np.frombuffer(groups, np.int64)
    sums, counts = np.bincount(numbers, weights=np.frombuffer(values, np.float64)), np.bincount(numbers)
    rng, means = np.random.default_rng(seed), np.empty(num_resamples)
    for begin in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        part = means[begin : begin + _RESAMPLES_AT_ONCE]
        drawn = rng.integers(len(sums), size=(len(part), len(sums)))
        part[:] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    seed: int = 0,
    level: float = 0.95,
    num_resamples: int = 9999,
    groups: ArrayLike | None = None,
) -> PairedTest:
    """Whether system a differs from system b: the two-sided paired permutation test on the mean of a − b.

    Args:
        a: one value a question.
        b: the same questions' values, in the same order.
        seed: of the resampling.
        level: of the interval.
        num_resamples: permutations and bootstrap samples; few questions have all their permutations counted instead.
        groups: of each question, numbers from 0: questions of one target are drawn and exchanged together.

    Raises:
        InputError: none, not finite, or of different number.
    """
    ours, theirs = _finite(a, "a"), _finite(b, "b")
    if len(ours) != len(theirs):
        raise InputError(f"a has {len(ours)} values and b {len(theirs)}; a paired test needs the same questions")
    difference = ours - theirs
    if groups is None:
        low, high = bootstrap_interval(difference, seed, level, num_resamples)
        p_value = _sign_flip_p_value(difference, seed, num_resamples)
    else:
        low, high = grouped_interval(difference, groups, seed, level, num_resamples)
        sums: Values = np.bincount(groups, weights=difference).astype(np.float64)
        p_value = _sign_flip_p_value(sums, seed, num_resamples)
    return PairedTest(float(difference.mean()), low, high, p_value, len(difference))


def _sign_flip_p_value(difference: Values, seed: int, num_resamples: int) -> float:
    """Share of sign patterns, all or random ones, whose mean is at least as far from 0 as the observed one.

    scipy's `permutation_test` gives the same (a test holds them together) in twenty times the time: an evaluation makes
    thousands of these.
    """
    number, observed = len(difference), abs(difference.sum()) * (1 - 1e-12)
    if 2**number <= num_resamples:
        patterns = np.arange(2**number)[:, None] >> np.arange(number) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ difference) >= observed))
    rng, as_far = np.random.default_rng(seed), 1
    for begin in range(0, num_resamples, _PATTERNS_AT_ONCE):
        size = (min(_PATTERNS_AT_ONCE, num_resamples - begin), number)
        flipped = rng.integers(0, 2, size, np.int8).astype(np.float64) @ difference
        as_far += int(np.sum(np.abs(difference.sum() - 2 * flipped) >= observed))
    return as_far / (num_resamples + 1)


def _finite(values: ArrayLike, name: str) -> Values:
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise InputError(
            f"{name}: shape {list(sample.shape)}, all finite: {bool(np.isfinite(sample).all())}; expected at least "
            "one finite number"
        )
    return sample


def _extra(module: str) -> Any:
    """A library of the extra `train`, imported on use: answering needs none of it."""
    try:
        # A third-party library, never a module of this project.
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{module}: not installed; run: pip install 'clara-rag[train]'") from error
