"""QUESTIONS: what training and evaluation ask, as one Parquet file."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from clara.errors import InputError
from clara.storage.artefact import Artefact
from clara.storage.manifest import hash_of, make_directory, refuse_other, write_file, write_manifest
from clara.storage.paths import Name, is_url
from clara.storage.tables import read_records, table_bytes

FILE = "questions.parquet"
_STRINGS = pa.list_(pa.string())
_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("answers", _STRINGS),
        ("positive_ids", _STRINGS),
        ("candidate_ids", _STRINGS),
        ("exclude_ids", _STRINGS),
        ("split", pa.string()),
        ("positive_hops", pa.list_(pa.int32())),
        ("positive_grades", pa.list_(pa.float64())),
        ("kind", pa.string()),
    ]
)


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        answers: every accepted wording; training uses the first. A question whose positives are known may have none:
            it can be searched for, and nothing else.
        positive_ids: documents known to help; may be empty.
        candidate_ids: the pool it was published with, or a fixed one; may be empty.
        exclude_ids: documents that are kept out of its candidates (cloze: the article that it was cut from).
        split: `train`, `seen`, `unseen`, or empty.
        positive_hops: for each positive its hop: 1 is found from the question alone, 2 and more through what an earlier
            one says, 0 is unknown; empty where nothing is known of hops (and in artefacts that were made before they
            were kept).
        positive_grades: for each positive how relevant it was judged, above 0; empty: all alike.
        kind: what made it, as `cloze` or `natural`; evaluation shows figures of each kind. Empty: not known (and in
            artefacts that were made before it was kept).
    """

    question_id: str
    question: str
    answers: tuple[str, ...]
    positive_ids: tuple[str, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    exclude_ids: tuple[str, ...] = ()
    split: str = ""
    positive_hops: tuple[int, ...] = ()
    positive_grades: tuple[float, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InputError(f"question {self.question_id!r} is {self.question!r}; expected some text, or leave it out")
        if not self.answers and not self.positive_ids:
            raise InputError(
                f"question {self.question_id!r}, {self.question[:60]!r}: no answer; give it one at least, or leave "
                "it out"
            )
        if self.positive_hops and len(self.positive_hops) != len(self.positive_ids):
            raise InputError(
                f"question {self.question_id!r}: {len(self.positive_hops)} hops for {len(self.positive_ids)} "
                "positives; give each one, or none"
            )
        grades = self.positive_grades
        if grades and not (len(grades) == len(self.positive_ids) and all(0 < grade < math.inf for grade in grades)):
            raise InputError(
                f"question {self.question_id!r}: grades {list(grades)} of {len(self.positive_ids)} "
                "positives; give each one above 0, or none"
            )


def write_questions(
    directory: str | os.PathLike[str],
    questions: Iterable[Question],
    *,
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a QUESTIONS artefact and return its manifest."""
    refuse_other(directory, "QUESTIONS")
    rows = list(questions)
    if not is_url(directory):
        make_directory(directory)
    entry = write_file(directory, FILE, table_bytes(rows, _SCHEMA), len(rows))
    splits, kinds = Counter(q.split for q in rows), Counter(q.kind for q in rows)
    return write_manifest(
        directory,
        kind="QUESTIONS",
        files=[entry],
        recipe=recipe,
        counts={
            "questions": len(rows),
            **{f"split {k or 'none'}": v for k, v in sorted(splits.items())},
            **({f"kind {k or 'none'}": v for k, v in sorted(kinds.items())} if len(kinds) > 1 else {}),
            **(counts or {}),
        },
    )


def read_questions(source: Name | Artefact, split: str | None = None, *, answers: bool = True) -> list[Question]:
    """The questions of an artefact, in file order; of one split, if given.

    Args:
        source: the artefact or its directory.
        split: None: all of them.
        answers: whether each question needs an answer.

    Raises:
        InputError: no finished QUESTIONS there, a damaged file, a question without text or answer, or no question in
            that split.
    """
    artefact = Artefact.open(source, "QUESTIONS")
    path = artefact.folder / FILE
    rows = read_records(path)
    try:
        questions = [Question(**row) for row in rows]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except TypeError as error:
        raise InputError(f"{path}: its columns are not those of QUESTIONS ({error}); build it again") from error
    chosen = [q for q in questions if split is None or q.split == split]
    if not chosen and split is not None:
        raise InputError(
            f"{artefact.folder}: no question with split {split!r}; there are {sorted({q.split for q in questions})}"
        )
    if answers and (without := [q for q in chosen if not q.answers]):
        raise InputError(
            f"{path}: question {without[0].question_id!r}, {without[0].question[:60]!r}: no answer ({len(without)} of "
            f"{len(chosen)} questions have none), which is needed here; build QUESTIONS with answers, or only search "
            "for them (training.evaluate --retrieval-only)"
        )
    return chosen


def fold_of(questions: Iterable[Question], share: float) -> tuple[list[Question], list[Question]]:
    """Questions whose targets are all in a fold of the corpus, and questions none of whose targets are.

    Which documents are in the fold depends on their ids alone. A question with targets on both sides is in neither
    list, so that no target of the first is one of the second. A question without known targets is its own target.

    Args:
        questions: of any kind.
        share: of the documents that the fold holds; 0: all questions are in the second list.
    """
    if not share:
        return [], list(questions)
    inside, outside = [], []
    for question in questions:
        targets = question.positive_ids or (question.question_id,)
        sides = {int(hash_of(["fold", target])[:12], 16) < share * 16**12 for target in targets}
        if sides == {True}:
            inside.append(question)
        elif sides == {False}:
            outside.append(question)
    return inside, outside


def target_of(question_id: str, positive_ids: Iterable[str]) -> tuple[str, ...]:
    """What a question asks for: the set of its right documents; the question itself if none is known.

    Questions of one target are not independent samples, so that intervals and tests draw them together.
    """
    return tuple(sorted(positive_ids)) or ("", question_id)


def by_target(questions: Sequence[Question]) -> list[list[int]]:
    """Positions of questions by their targets, in the order in which these first occur."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, question in enumerate(questions):
        groups.setdefault(target_of(question.question_id, question.positive_ids), []).append(position)
    return list(groups.values())


def of_many_targets(questions: Sequence[Question], count: int) -> list[Question]:
    """At most `count` of the questions, in their order: of as many targets as can be, see `by_target`.

    Every target gives its first question before any gives its second, and so on.
    """
    rounds: dict[int, list[int]] = {}
    for group in by_target(questions):
        for round_, position in enumerate(group):
            rounds.setdefault(round_, []).append(position)
    chosen: list[int] = []
    for round_ in sorted(rounds):
        chosen += evenly(rounds[round_], count - len(chosen))
    return [questions[position] for position in sorted(chosen)]


def check_targets(questions: Sequence[Question], where: str) -> None:
    """Refuse several questions that all have one target: a retriever would learn that row instead of what is asked.

    Raises:
        InputError: all of several questions have one target.
    """
    if len(questions) > 1 and questions[0].positive_ids and len(by_target(questions)) == 1:
        raise InputError(
            f"{where}: all {len(questions)} training questions have the target {', '.join(questions[0].positive_ids)}, "
            "so a retriever has no choice to learn; give questions of several targets"
        )


def shuffled_answers(questions: Sequence[Question], order: Sequence[int]) -> list[Question]:
    """The control: every question with the answers of the next one in a random order, so that none keeps its own."""
    successor = {position: order[(i + 1) % len(order)] for i, position in enumerate(order)}
    return [dataclasses.replace(q, answers=questions[successor[i]].answers) for i, q in enumerate(questions)]


_T = TypeVar("_T")


def evenly(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of the items, evenly spread, in their order."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def drawn(questions: Iterable[Question], count: int, seed: int) -> list[Question]:
    """At most `count` of the questions: those whose ids hash lowest with the seed, so that a larger count only adds."""
    return sorted(questions, key=lambda q: hash_of([seed, q.question_id]))[:count]


def choose(questions: list[Question], count: int) -> list[Question]:
    """Held-out questions with a known positive: of split `unseen`, else `seen`, evenly spread."""
    for split in ("unseen", "seen"):
        found = [q for q in questions if q.split == split and q.positive_ids]
        if found:
            return evenly(found, count)
    return []
