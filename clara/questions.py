"""QUESTIONS: what training and evaluation ask, as one Parquet file."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clara.artefact import file_entry, read_manifest, write_manifest
from clara.errors import InputError

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
    ]
)


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        answers: every accepted wording; training uses the first.
        positive_ids: documents known to help; may be empty.
        candidate_ids: the pool it was published with, or a fixed one; may be empty.
        exclude_ids: documents that are kept out of its candidates (cloze: the article that it was cut from).
        split: `train`, `seen`, `unseen`, or empty.
    """

    question_id: str
    question: str
    answers: tuple[str, ...]
    positive_ids: tuple[str, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    exclude_ids: tuple[str, ...] = ()
    split: str = ""


def write_questions(
    directory: str | os.PathLike[str], questions: Iterable[Question], *, recipe: Mapping[str, Any], counts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write a QUESTIONS artefact and return its manifest."""
    rows = [asdict(q) for q in questions]
    Path(directory).mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([{k: list(v) if isinstance(v, tuple) else v for k, v in row.items()} for row in rows], schema=_SCHEMA)
    pq.write_table(table, Path(directory) / FILE)
    splits: dict[str, int] = {}
    for row in rows:
        splits[row["split"]] = splits.get(row["split"], 0) + 1
    return write_manifest(
        directory,
        kind="QUESTIONS",
        files=[file_entry(directory, FILE, len(rows))],
        recipe=recipe,
        counts={"questions": len(rows), **{f"split {k or 'none'}": v for k, v in sorted(splits.items())}, **(counts or {})},
    )


def read_questions(directory: str | os.PathLike[str], split: str | None = None) -> list[Question]:
    """The questions of an artefact, in file order; of one split, if given.

    Raises:
        InputError: no finished QUESTIONS there, or no question in that split.
    """
    read_manifest(directory, "QUESTIONS")
    rows = pq.read_table(Path(directory) / FILE).to_pylist()
    questions = [Question(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in rows]
    if split is None:
        return questions
    chosen = [q for q in questions if q.split == split]
    if not chosen:
        raise InputError(f"{directory}: no question with split {split!r}; there are {sorted({q.split for q in questions})}")
    return chosen
