"""What the evidence aims at, and whether it was reached."""

from collections.abc import Sequence
from dataclasses import dataclass

from clara.intervals import PairedTest
from infra.evidence.reading import Reading
from infra.evidence.rows import BASELINES, CHALLENGERS, LIKELIHOOD, RECALL, TOGETHER, compare, systems_of
from infra.evidence.tables import ALIGNMENTS
from training.evaluation.measures import Row
from training.evaluation.tables import shown


@dataclass(frozen=True)
class Target:
    """An aim and its measurement.

    Attributes:
        aim: in words.
        test: None if it was not measured.
        least: the difference that is aimed at; the interval must also exclude 0.
    """

    aim: str
    test: PairedTest | None
    least: float = 0.0

    def outcome(self) -> str:
        """In words, with the distance if it was missed."""
        test = self.test
        if test is None:
            return f"{self.aim}: not measured"
        if test.difference < self.least:
            outcome = f"missed by {self.least - test.difference:.3f}"
        elif test.low <= 0:
            outcome = "not shown: the interval holds 0"
        else:
            outcome = "reached"
        return (
            f"{self.aim}: {test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}], p = {test.p_value:.4f}, "
            f"n = {test.num_questions}: {outcome}"
        )


def alignment_targets(rows: Sequence[Row]) -> list[str]:
    """Whether joint training raises utility alignment: paired by question."""
    return [
        Target(
            f"joint raises utility alignment, {title}, all pools", compare(rows, "joint", "start", TOGETHER, name)
        ).outcome()
        for title, name in ALIGNMENTS.items()
    ]


def targets(rows: Sequence[Row], read: Sequence[Reading]) -> list[str]:
    """The aims of reading and of joint training, with their outcomes."""
    outcomes = []
    for reading in read:
        if gap := reading.figures.get("gap.right_minus_wrong"):
            outcome = "reached" if gap.value >= 1 else f"missed by {1 - gap.value:.3f}"
            outcomes.append(
                f"the right memory beats a wrong one by 1 nat an answer, {reading.ratio:.1f}x: "
                f"{shown(gap, interval=True)}: {outcome}"
            )
    for challenger in [c for c in CHALLENGERS if c in systems_of(rows)]:
        aims = [
            (f"{challenger} beats its start by 0.15 of Recall@2, {split}", "start", split, RECALL, 0.15)
            for split in ("2wiki", "hotpotqa", TOGETHER)
        ]
        aims += [
            (f"{challenger} beats the control {control}, Recall@2, all pools", control, TOGETHER, RECALL, 0.0)
            for control in ("cut", "shuffled")
        ]
        aims += [
            (f"{challenger} beats {base} in the answer's log-likelihood, all pools", base, TOGETHER, LIKELIHOOD, 0.0)
            for base in BASELINES
        ]
        outcomes += [
            Target(aim, compare(rows, challenger, opponent, split, measure), least).outcome()
            for aim, opponent, split, measure, least in aims
        ]
    return outcomes
