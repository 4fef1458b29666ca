"""Floors: what a version must reach to get an alias, measured on all held-out questions of its evaluation.

`MEASURE>=BASELINE` is a paired difference: the version less what its own generator makes of the baseline's passages.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clara.config.evaluation import ANSWER_SECONDS, FLOOR
from clara.errors import InputError
from clara.intervals import grouped_interval
from training.registry.evaluated import Evaluated, target_numbers

_REMEDY = "train on or fit the score, evaluate and register it; promotion.floors sets the floors"


@dataclass(frozen=True)
class Check:
    """How a version compares with a floor.

    Attributes:
        floor: as `index.recall@5>=bm25`.
        reached: whether the mean difference is on the right side of 0, or 0.
        difference: mean over questions of the measure less the floor.
        low: of its 95 % interval, whose bootstrap resamples targets.
        high: of that interval.
        num_questions: that have the measure.
        num_targets: of these questions.
    """

    floor: str
    reached: bool
    difference: float
    low: float
    high: float
    num_questions: int
    num_targets: int

    def __str__(self) -> str:
        """The floor and the figures."""
        return (
            f"{self.floor}: {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}], {self.num_questions} questions "
            f"of {self.num_targets} targets"
        )


def check(of: Evaluated, floors: Iterable[str]) -> list[Check]:
    """Compare a version with its floors.

    Raises:
        InputError: a floor cannot be measured: the evaluation lacks the measure, the baseline, or two questions.
    """
    return [_check(of, *parts) for floor in floors for parts in _parts(of, floor)]


def refusal(checks: Sequence[Check]) -> str:
    """Why a version gets no alias; empty if it reaches every floor."""
    under = [str(each) for each in checks if not each.reached]
    return f"does not reach the floor {'; '.join(under)}; {_REMEDY}" if under else ""


def _parts(of: Evaluated, floor: str) -> Iterator[tuple[str, str, str]]:
    """Measure, sign and bound; `baselines` is each baseline that the evaluation has, and BM25 is one."""
    parts = FLOOR.fullmatch(floor)
    assert parts is not None, "the configuration checks the form"
    measure, sign, bound = parts["measure"], parts["sign"], parts["bound"]
    if measure not in of.known():
        timed = ", or evaluate with --timed N and register again" if measure == ANSWER_SECONDS else ""
        raise InputError(f"promotion.floors {floor!r}: {of.label} has {', '.join(of.known())}; name one of them{timed}")
    bounds = [bound]
    if bound == "baselines":
        bounds = ["bm25", *(["dense"] if f"dense/{of.system}" in of.rows else [])]
    for each in bounds:
        if each in ("bm25", "dense") and f"{each}/{of.system}" not in of.rows:
            raise InputError(
                f"promotion.floors {floor!r}: the evaluation of {of.label} has no {each}/{of.system}; evaluate with "
                f"--baselines {each}, register again, or leave the floor out"
            )
        yield measure, sign, each


def _check(of: Evaluated, measure: str, sign: str, bound: str) -> Check:
    own = of.values(measure)
    base = (
        of.values(measure, f"{bound}/{of.system}") if bound in ("bm25", "dense") else dict.fromkeys(own, float(bound))
    )
    names = sorted(own.keys() & base.keys())
    if len(names) < 2:
        raise InputError(
            f"promotion.floors {measure}{sign}{bound}: {of.label} was measured on {len(names)} questions with it; "
            "expected two at least: evaluate more, or leave the floor out"
        )
    differences = np.array([own[name] - base[name] for name in names])
    targets = target_numbers(of.asked, names)
    mean = float(differences.mean())
    reached = mean >= 0 if sign == ">=" else mean <= 0
    interval = grouped_interval(differences, targets)
    return Check(f"{measure}{sign}{bound}", reached, mean, *interval, len(names), int(targets.max()) + 1)
