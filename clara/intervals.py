"""Intervals and paired tests over questions; those of one target are drawn together where their groups are given."""

import functools
import importlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clara.errors import InputError

Values = NDArray[np.float64]

# Sign patterns that are in memory at once.
_PATTERNS_AT_ONCE = 1024
_RESAMPLES_AT_ONCE = 256


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


def group_numbers(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """The group of each question, by number from 0 in the order in which its key first occurs."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def grouped_interval(
    values: ArrayLike, groups: ArrayLike | None, seed: int = 0, level: float = 0.95, num_resamples: int = 9999
) -> tuple[float, float]:
    """`bootstrap_interval` that draws the questions of a group (of one target) together.

    Groups are numbers from 0; None: each question alone.
    """
    if groups is None:
        return bootstrap_interval(values, seed, level, num_resamples)
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
    low, high = grouped_interval(difference, groups, seed, level, num_resamples)
    sums: Values = difference if groups is None else np.bincount(groups, weights=difference).astype(np.float64)
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
