"""Rows that hold their own passages: the published implementation's, DPR's, FiD's and Atlas', FlashRAG's."""

from collections.abc import Mapping
from typing import Any

from clara.errors import InputError
from pipelines.build_questions.multi_hop import context_paragraphs
from pipelines.build_questions.published import ANSWERS, Paragraph, Published, answers_of, passage_of
from pipelines.build_questions.row import Row, field, given_id, is_empty, objects, question_of, whole_numbers
from pipelines.build_questions.stored_text import parsed

_POSITIVES = ("positive_ctxs", "positive_passages", "pos")
_NEGATIVES = ("hard_negative_ctxs", "negative_ctxs", "negative_passages", "neg")
_NO_ANSWER = "No Answer Present."


def convert_clara(row: Row) -> Published:
    """The published implementation: `docs`, of which `pos_index` are right; title and text are lines of a document."""
    question = question_of(row)
    answers = answers_of(row, question, ANSWERS)
    docs = field(row, "docs", list)
    right = [] if is_empty(row.get("pos_index")) else whole_numbers(row["pos_index"], "pos_index", row.where)
    if beyond := [position for position in right if not 0 <= position < len(docs)]:
        raise InputError(
            f"{row.where}: pos_index has {beyond[0]}, and docs holds {len(docs)}; expected 0 to {len(docs) - 1}"
        )
    passages = [passage_of(text, row, "docs", position, position in right) for position, text in enumerate(docs)]
    return Published(given_id(row), question, answers, _with_text(passages, row))


def convert_dpr(row: Row) -> Published:
    """DPR's retriever files: `positive_ctxs`, and `negative_ctxs` and `hard_negative_ctxs` as the pool's others.

    Tevatron's name them `positive_passages` and `negative_passages`, FlagEmbedding's `pos` and `neg`.
    """
    question = question_of(row, "question", "query")
    passages = [p for name in _POSITIVES for p in _passages(row, name, positive=True)]
    known = bool(passages)
    passages += [p for name in _NEGATIVES for p in _passages(row, name, positive=False)]
    answers = answers_of(row, question, ("answers", "answer"), needed=not known)
    return Published(given_id(row), question, answers, _with_text(passages, row))


def convert_fid(row: Row) -> Published:
    """FiD's `ctxs` and Atlas' `passages`; those with a true `has_answer` are positives.

    MS MARCO's questions with answers have `query`, and `is_selected` in its passages.
    """
    question = question_of(row, "question", "query")
    if parsed(row.get("answers")) == [_NO_ANSWER]:
        raise InputError(f"{row.where}: the answer is {_NO_ANSWER!r}; leave the row out, or use --skip-bad")
    answers = answers_of(row, question, ("answers", "answer", "target"))
    name = row.name_of(("ctxs", "passages")) or "ctxs"
    passages = [passage_of(given, row, name, number) for number, given in enumerate(_entries(row, name))]
    return Published(given_id(row), question, answers, _with_text(passages, row))


def convert_flashrag(row: Row) -> Published:
    """FlashRAG and Search-R1: `golden_answers`; the paragraphs of multi-hop sets are in `metadata`."""
    question = question_of(row)
    answers = answers_of(row, question, ("golden_answers",))
    metadata = parsed(row.peek("metadata"))
    if not isinstance(metadata, Mapping) or is_empty(metadata.get("context")):
        return Published(given_id(row), question, answers)
    about = row.part("metadata", parsed(row["metadata"]), f"{row.where} metadata")
    paragraphs, notes = context_paragraphs(about, str(about.get("type", "")), question)
    return Published(given_id(row), question, answers, paragraphs, notes=notes)


def _passages(row: Row, name: str, *, positive: bool) -> list[Paragraph]:
    if is_empty(row.get(name)):
        return []
    return [passage_of(entry, row, name, number, positive) for number, entry in enumerate(_entries(row, name))]


def _entries(row: Row, name: str) -> list[Any]:
    """Passages of a field: objects or texts in a list, or objects as columns; each perhaps as text."""
    if isinstance(parsed(row.get(name)), Mapping):
        return list(objects(row[name], name, row.where))
    return [parsed(entry) for entry in field(row, name, list)]


def _with_text(passages: list[Paragraph], row: Row) -> tuple[Paragraph, ...]:
    """The passages.

    Raises:
        InputError: a passage is empty.
    """
    empty = next((position for position, passage in enumerate(passages) if not passage.text), None)
    if empty is not None:
        raise InputError(
            f"{row.where}: passage {empty} of {len(passages)} has no text; leave the row out, or use --skip-bad"
        )
    return tuple(passages)
