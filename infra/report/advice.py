"""Which way to choose: a rule over paired intervals, and its reasons in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clara.intervals import PairedTest, bootstrap_interval, paired_test

BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
LEVEL = 0.05
RULE = (
    "One way is better than another on a measure if the 95 % interval of their paired difference excludes 0 and the "
    f"permutation test gives p < {LEVEL}; else they are undecided. Questions about one document are drawn together. "
    "Of all ways, those are left out than which the one with the highest mean is better; of the others, those that "
    "are slower than the fastest (interval of the ratio above 1); of the rest, the one that needs the fewest bytes is "
    "recommended."
)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one way takes as another: geometric mean over questions, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Recommendation:
    """What to choose by `RULE`.

    Attributes:
        choice: label of the recommended way.
        best: that with the highest mean.
        worse: those than which the best is better, with the difference of the best to each.
        undecided: those with which the best is undecided, likewise.
        slower: of these and the best, those slower than the fastest, with their ratio to it.
        num_questions: for each undecided one, questions after which the interval would exclude the same difference;
            0: there is none.
    """

    choice: str
    best: str
    worse: Mapping[str, PairedTest]
    undecided: Mapping[str, PairedTest]
    slower: Mapping[str, Ratio]
    num_questions: Mapping[str, int]


def verdict(test: PairedTest) -> str:
    """What a difference says of the first way, where larger is better."""
    if test.p_value >= LEVEL or test.low <= 0 <= test.high:
        return UNDECIDED
    return BETTER if test.low > 0 else WORSE


def paired(
    first: Mapping[str, float], second: Mapping[str, float], targets: Mapping[str, int], seed: int = 0
) -> PairedTest | None:
    """First minus second over the questions that both have; None where these are fewer than two.

    Args:
        first: a measure by question id.
        second: the same of another way.
        targets: number of each question's right document.
        seed: of the resampling.
    """
    names = [name for name in first if name in second]
    if len(names) < 2:
        return None
    a, b = ([of[name] for name in names] for of in (first, second))
    _, groups = np.unique([targets[name] for name in names], return_inverse=True)
    return paired_test(a, b, seed, groups=groups)


def ratio(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Ratio:
    """How many times the second the first took, question by question (seconds, at least two questions)."""
    logs: NDArray[np.float64] = np.log(first) - np.log(second)
    low, high = bootstrap_interval(logs, seed)
    return Ratio(*(math.exp(value) for value in (float(logs.mean()), low, high)))


def questions_wanted(test: PairedTest) -> int:
    """Questions after which an interval of this spread would exclude 0, if the difference stays; 0: it is none."""
    half = (test.high - test.low) / 2
    return math.ceil(test.num_questions * (half / test.difference) ** 2) if test.difference else 0


def recommend(
    values: Mapping[str, Mapping[str, float]],
    targets: Mapping[str, int],
    seconds: Mapping[str, Sequence[float]],
    num_bytes: Mapping[str, float],
    seed: int = 0,
) -> Recommendation:
    """Choose by `RULE`.

    Args:
        values: the deciding measure of each way, by question id; larger is better. All ways have the same questions, at
            least two.
        targets: number of each question's right document.
        seconds: of an answer by each way, the same questions in the same order.
        num_bytes: that each way needs.
        seed: of the resampling.
    """
    mean = {way: sum(of.values()) / len(of) for way, of in values.items()}
    best = max(mean, key=mean.__getitem__)  # the first of equal ones
    tests = {way: paired(values[best], of, targets, seed) for way, of in values.items() if way != best}
    found = {way: test for way, test in tests.items() if test is not None}
    worse = {way: test for way, test in found.items() if verdict(test) == BETTER}
    undecided = {way: test for way, test in found.items() if way not in worse}
    left = [way for way in values if way not in worse]
    fastest = min(left, key=lambda way: float(np.mean(np.log(seconds[way]))))
    ratios = {way: ratio(seconds[way], seconds[fastest], seed) for way in left if way != fastest}
    slower = {way: of for way, of in ratios.items() if of.low > 1}
    choice = min((way for way in left if way not in slower), key=num_bytes.__getitem__)
    wanted = {way: questions_wanted(test) for way, test in undecided.items()}
    return Recommendation(choice, best, worse, undecided, slower, wanted)


def reasons(of: Recommendation, titles: Mapping[str, str], measure: str, num_timed: int) -> list[str]:
    """The reasons of a recommendation, a sentence each."""
    best = titles[of.best]

    def shown(test: PairedTest) -> str:
        return f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"

    lines = [f"{measure}: {best} has the highest mean."]
    if of.worse:
        lines.append(f"It is better than {', '.join(f'{titles[w]} ({shown(t)})' for w, t in of.worse.items())}.")
    for way, test in of.undecided.items():
        more = of.num_questions[way]
        hint = f"; about {more:,} questions would decide it" if more > test.num_questions else ""
        lines.append(f"Undecided against {titles[way]} ({shown(test)}, {test.num_questions} questions{hint}).")
    if of.slower:
        slow = ", ".join(f"{titles[w]} ({r.value:.1f} times the fastest)" for w, r in of.slower.items())
        lines.append(f"Slower on the {num_timed} questions timed: {slow}.")
    left = [way for way in (of.best, *of.undecided) if way not in of.slower]
    if len(left) > 1:
        others = ", ".join(titles[way] for way in left if way != of.choice)
        lines.append(f"{titles[of.choice]} needs the fewest bytes of what is left (also {others}).")
    return lines
