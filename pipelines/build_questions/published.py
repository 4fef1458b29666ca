"""Rows with a question and its answers, and perhaps ids of documents: one's own, NQ-open, TriviaQA, PopQA, FlashRAG."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clara.data.corpus import read_rows
from clara.data.fields import QuestionFields
from clara.data.json_records import RepeatedNameError, unique_names
from clara.data.streams import as_utf8, opened
from clara.errors import InputError
from pipelines.build_questions.hops import UNKNOWN
from pipelines.build_questions.row import Row, answered, field, given_id, ids, near_miss, question_of, text_of, truth
from pipelines.build_questions.stored_text import parsed

SPLITS = ("", "train", "seen", "unseen")
ANSWERS = ("answer", "answers", "golden_answers", "gold_answer", "gold_answers")
"""Names that fields of answers have; of several the first is what training uses."""


@dataclass(frozen=True)
class Paragraph:
    """A document of a question's pool.

    Attributes:
        hop: as in `Question.positive_hops`.
        id: that its file gives it; empty: the hash of its content.
    """

    title: str
    text: str
    positive: bool
    hop: int = UNKNOWN
    id: str = ""


@dataclass(frozen=True)
class Published:
    """A question of a file, white space normalised.

    Attributes:
        question_id: empty: a hash of the question.
        paragraphs: its documents.
        positive_ids: ids of documents that the file does not hold.
        candidate_ids: likewise.
        positive_grades: of `positive_ids`; empty: all alike.
        split: if its row names one.
        notes: what was left out of the row, to be counted and reported.
    """

    question_id: str
    question: str
    answers: tuple[str, ...]
    paragraphs: tuple[Paragraph, ...] = ()
    positive_ids: tuple[str, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    positive_grades: tuple[float, ...] = ()
    split: str = ""
    notes: tuple[str, ...] = ()


# --- rows ------------------------------------------------------------------------------------------------------------


def plain_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Questions of a file of objects: JSON, JSON Lines, Parquet, or what else `read_rows` reads.

    Raises:
        InputError: none of them.
    """
    yield from ((f"{path}:{number}", row) for number, row in read_rows(path, QuestionFields()))


def whole_object(path: str) -> Mapping[str, Any] | None:
    """The object that is the whole content of a JSON file; None: there are several values, or another format.

    Raises:
        InputError: it has a lone surrogate or a name twice, or the file is damaged.
    """
    try:
        with opened(path) as stream:
            whole = json.loads(as_utf8(stream).read().decode("utf-8-sig"), object_pairs_hook=unique_names)
    except InputError:
        raise
    except RepeatedNameError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError):
        return None
    if not isinstance(whole, dict):
        return None
    try:
        json.dumps(whole, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: not JSON in UTF-8 ({error}); expected whole characters") from error
    return whole


def triviaqa_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Questions of TriviaQA: the file as published (`Data`), or one row a question as on dataset hubs."""
    whole = whole_object(path)
    if whole is None or not isinstance(whole.get("Data"), list):
        yield from plain_rows(path)
        return
    yield from ((f"{path} question {number}", row) for number, row in enumerate(whole["Data"], 1))


# --- conversions -----------------------------------------------------------------------------------------------------


def convert_nq_open(row: Row) -> Published:
    """NQ-open: questions with aliases, no documents."""
    question = question_of(row)
    return Published("", question, answered(row, question, field(row, "answer", list)))


def convert_popqa(row: Row) -> Published:
    """PopQA: `possible_answers`, a list, mostly as text."""
    question = question_of(row)
    return Published(given_id(row), question, answered(row, question, field(row, "possible_answers", list)))


def convert_triviaqa(row: Row) -> Published:
    """TriviaQA: an `answer` with `value` and `aliases`; names begin with a capital in the published files."""
    question = question_of(row, "question", "Question")
    name = row.name_of(("answer", "Answer")) or "answer"
    answer = Row(field(row, name, dict), f"{row.where} {name}")
    first = answer.name_of(("value", "Value"))
    aliases = parsed(answer.get(answer.name_of(("aliases", "Aliases"))) or [])
    if not isinstance(aliases, list | tuple):
        raise InputError(f"{answer.where}: aliases is {aliases!r:.80}; expected a list of strings")
    question_id = given_id(row) or (str(row["QuestionId"]) if row.get("QuestionId") else "")
    return Published(question_id, question, answered(row, question, [*([answer[first]] if first else []), *aliases]))


def convert_jsonl(row: Row) -> Published:
    """One's own: `question`, `answers` (list) or `answer`; perhaps `id`, `positive_ids`, `candidate_ids`, `split`.

    A question whose positives are known needs no answer: it can be searched for.
    """
    question = question_of(row)
    positive_ids, candidate_ids = (
        ids(row.get(name) or [], name, row.where) for name in ("positive_ids", "candidate_ids")
    )
    answers = answers_of(row, question, ("answers", "answer"), needed=not positive_ids)
    split = row.get("split") or ""
    if not isinstance(split, str) or split.strip() not in SPLITS:
        raise InputError(f"{row.where}: split is {split!r:.80}; expected train, seen or unseen, or none")
    return Published(given_id(row), question, answers, (), positive_ids, candidate_ids, split=split.strip())


def answers_of(row: Row, question: str, names: tuple[str, ...], *, needed: bool = True) -> tuple[str, ...]:
    """The answers of a row, of the first of some fields first.

    Raises:
        InputError: one is malformed; or there is none, and one is needed.
    """
    given = [name for name in names if row.get(name) is not None]
    if not given and needed:
        near = next((other for name in names if (other := near_miss(name, row))), "")
        raise InputError(
            f"{row.where}: no field {' or '.join(map(repr, names))} (there are {', '.join(sorted(row))})"
            + (f"; did you mean {near!r}?" if near else "")
        )
    found: list[str] = []
    for name in given:
        try:
            found += answered(row, question, row[name])
        except InputError:
            if needed or not _is_blank(row[name]):
                raise
    return tuple(dict.fromkeys(found))


def _is_blank(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(item, str) and not item.strip() for item in items)


# --- passages --------------------------------------------------------------------------------------------------------

_TEXTS = ("text", "contents", "content", "passage_text", "paragraph_text", "passage")
_RIGHT = ("has_answer", "hasanswer", "is_selected")
_PASSAGE_IDS = ("passage_id", "psg_id", "id", "docid", "doc_id", "pid", "_id")


def passage_of(given: Any, row: Row, name: str, number: int, positive: bool | None = None) -> Paragraph:
    """A document inside a row: an object with `title` and `text`, or a text whose first line is its title.

    Args:
        given: the document.
        row: it is inside of.
        name: of its field there.
        number: its place there, from 0.
        positive: None: if it says so itself.

    Raises:
        InputError: it is neither, or has no text.
    """
    given, where = parsed(given), f"{row.where} {name} {number}"
    if isinstance(given, str | bytes):
        title, text = title_line(given, where)
        return Paragraph(title, text, bool(positive))
    passage = row.part(name, given, where)
    if positive is None:
        right = passage.name_of(_RIGHT)
        positive = bool(right) and truth(passage[right], right, where)
    body = passage.name_of(_TEXTS)
    title = text_of(passage.get("title") or "", "title", where)
    if not body and not title:
        raise InputError(f"{where}: no field 'text' (there are {', '.join(sorted(passage)) or 'none'})")
    text = text_of(passage[body], body, where) if body else ""
    if body == "contents" and not title:
        title, text = title_line(passage[body], where)
    found = passage.name_of(_PASSAGE_IDS)
    own = ids([passage[found]], found, where)[0] if found else ""
    return Paragraph(title if text else "", text or title, positive, id=own)


def title_line(given: str | bytes, where: str) -> tuple[str, str]:
    """Title and text, normalised, of a text whose first line is its title; a text of one line has none."""
    whole = given.decode("utf-8", "replace") if isinstance(given, bytes) else given
    first, _, rest = whole.strip().partition("\n")
    title, text = text_of(first, "title", where), text_of(rest, "text", where)
    if not text:
        return "", title
    quoted = len(title) > 1 and title[0] == title[-1] == '"'
    return (title[1:-1].strip() if quoted else title), text
