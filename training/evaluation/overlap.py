"""Which questions one system finds a right document for and another does not, among the first five of the index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.evaluation.measures import Row, is_number

FIRST = 5
_MEASURE = f"index.recall@{FIRST}"


@dataclass(frozen=True)
class Overlap:
    """The questions of one kind by which of two systems finds a right document among the first five.

    Attributes:
        kind: of the questions; empty: not known.
        both: number of those that both systems find one for.
        first: ids of those that the first alone does.
        second: ids of those that the second alone does.
        neither: number of those that none does.
    """

    kind: str
    both: int
    first: Sequence[str]
    second: Sequence[str]
    neither: int


def overlaps(first: Sequence[Row], second: Sequence[Row]) -> list[Overlap]:
    """One for each kind of question, in the order of the rows; what one system was not asked counts in none."""
    by_question = {row["question_id"]: row for row in second if is_number(row.get(_MEASURE))}
    found: dict[str, dict[tuple[bool, bool], list[str]]] = {}
    for row in first:
        name = row["question_id"]
        if name in by_question and is_number(row.get(_MEASURE)):
            who = (row[_MEASURE] > 0, by_question[name][_MEASURE] > 0)
            found.setdefault(row.get("kind", ""), {}).setdefault(who, []).append(name)
    return [
        Overlap(
            kind,
            both=len(of.get((True, True), ())),
            first=of.get((True, False), []),
            second=of.get((False, True), []),
            neither=len(of.get((False, False), ())),
        )
        for kind, of in found.items()
    ]


def overlap_table(found: Mapping[str, Sequence[Overlap]]) -> tuple[list[str], list[list[str]]]:
    """Heading and lines: a line for each pair, "A - B", and kind of question, of pairs that differ."""
    lines = [
        [pair, of.kind or "not known", *map(str, (of.both, len(of.first), len(of.second), of.neither))]
        for pair, each in found.items()
        for of in each
        if any(other.first or other.second for other in each)
    ]
    return ["A - B", "kind", "both", "A alone", "B alone", "neither"], lines
