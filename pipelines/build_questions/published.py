"""Readers of published question files: HotpotQA, 2WikiMultihopQA, MuSiQue, SQuAD, NQ-open, and plain JSONL."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clara.data.corpus import read_rows
from clara.data.records import normalise
from clara.data.streams import opened
from clara.errors import InputError
from pipelines.build_questions.hops import UNKNOWN, decomposition_hops, fact_hops

Row = Mapping[str, Any]
SPLITS = ("", "train", "seen", "unseen")


@dataclass(frozen=True)
class Paragraph:
    """A document of a question's pool; `hop` as in `Question.positive_hops`."""

    title: str
    text: str
    positive: bool
    hop: int = UNKNOWN


@dataclass(frozen=True)
class Published:
    """A question of a file, white space normalised: its documents, or only their ids; a split if its row names one."""

    question_id: str
    question: str
    answers: tuple[str, ...]
    paragraphs: tuple[Paragraph, ...] = ()
    positive_ids: tuple[str, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    split: str = ""


# --- fields ----------------------------------------------------------------------------------------------------------


def field(row: Row, name: str, kind: type, where: str) -> Any:
    """A field of a row.

    Raises:
        InputError: it is missing or of another type.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: {row!r:.80} where an object with {name!r} is expected; is --format right?")
    if name not in row:
        raise InputError(
            f"{where}: no field {name!r} (there are {', '.join(sorted(row)) or 'none'}); is --format right?"
        )
    if not isinstance(row[name], kind):
        raise InputError(f"{where}: {name} is {row[name]!r:.80}; expected {kind.__name__}")
    return row[name]


def texts(values: Any, name: str, where: str) -> tuple[str, ...]:
    """A list of strings, normalised, each once, empty ones left out."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise InputError(f"{where}: {name} is {values!r:.80}; expected a list of strings")
    return tuple(dict.fromkeys(t for v in values if (t := normalise(v))))


def ids(values: Any, name: str, where: str) -> tuple[str, ...]:
    """Document ids as a corpus has them, where they may be integers; each once."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, str | int) for v in values):
        raise InputError(
            f"{where}: {name} is {values!r:.80}; expected a list of document ids, strings or integers as in the corpus"
        )
    return tuple(dict.fromkeys(str(v) for v in values if v != ""))


def given_id(row: Row, question: str) -> str:
    """The id that a row brings, or one made of its question."""
    found = next((row[name] for name in ("_id", "id") if row.get(name) not in (None, "")), None)
    return hashed_id(question) if found is None else str(found)


def question_and_answers(row: Row, answers: Any, where: str) -> tuple[str, tuple[str, ...]]:
    """The normalised question and its answers.

    Raises:
        InputError: one of them is empty.
    """
    question = normalise(field(row, "question", str, where))
    if not question:
        raise InputError(f"{where}: question is empty; leave the row out, or use --skip-bad")
    found = texts(answers, "answers", where)
    if not found:
        raise InputError(f"{where}: question {question[:60]!r} has no answer; leave the row out, or use --skip-bad")
    return question, found


def hashed_id(question: str) -> str:
    """The id of a question that brings none."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


# --- rows ------------------------------------------------------------------------------------------------------------


def plain_rows(path: str) -> Iterator[tuple[str, Row]]:
    """Questions of a file that holds one JSON list, one object a line, or a Parquet table.

    Raises:
        InputError: none of them.
    """
    yield from ((f"{path}:{number}", row) for number, row in read_rows(path))


def squad_rows(path: str) -> Iterator[tuple[str, Row]]:
    """Questions of a SQuAD file with their paragraphs: nested as published, or one row a question as on dataset hubs.

    Raises:
        InputError: neither of both.
    """
    try:
        with opened(path) as stream:
            whole = json.load(stream)
        json.dumps(whole, ensure_ascii=False).encode()  # a lone surrogate could not be written again
    except InputError:
        raise
    except (ValueError, RecursionError):
        whole = None  # no single JSON value: a line or a Parquet row for each question
    if not isinstance(whole, dict) or "context" in whole:
        yield from plain_rows(path)
        return
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    row = {**question, "title": article.get("title", ""), "context": paragraph["context"]}
                    yield f"{path} question {question['id']}", row
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not SQuAD's JSON ({error!r}); expected data > paragraphs > context and qas, or another --format"
        ) from error


# --- conversions -----------------------------------------------------------------------------------------------------


def convert_hotpotqa(row: Row, where: str) -> Published:
    """HotpotQA and 2WikiMultihopQA: `context` and `supporting_facts` as lists of pairs, or as columns."""
    question, answers = question_and_answers(row, [field(row, "answer", str, where)], where)
    context, facts = row.get("context"), row.get("supporting_facts")
    if isinstance(context, dict):
        context = list(zip(context.get("title", ()), context.get("sentences", ()), strict=False))
    try:
        named = [
            normalise(t) for t in (facts["title"] if isinstance(facts, dict) else [fact[0] for fact in facts or ()])
        ]
        pairs = [(normalise(title), normalise(" ".join(sentences))) for title, sentences in context or ()]
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{where}: context or supporting_facts is malformed ({error!r}); expected [[title, [sentence, …]], …]"
        ) from error
    hops = fact_hops(str(row.get("type", "")), question, list(dict.fromkeys(named)))
    paragraphs = tuple(Paragraph(title, text, title in hops, hops.get(title, UNKNOWN)) for title, text in pairs if text)
    return Published(given_id(row, question), question, answers, paragraphs)


def convert_musique(row: Row, where: str) -> Published:
    """MuSiQue: `paragraphs` with `is_supporting`, aliases beside the answer."""
    if not row.get("answerable", True):
        raise InputError(f"{where}: answerable is false; use MuSiQue-Ans, or --skip-bad")
    aliases = texts(row.get("answer_aliases") or (), "answer_aliases", where)
    question, answers = question_and_answers(row, [field(row, "answer", str, where), *aliases], where)
    paragraphs = []
    hops = decomposition_hops(row.get("question_decomposition") or [], where)
    for number, paragraph in enumerate(field(row, "paragraphs", list, where)):
        inside = f"{where} paragraph {number}"
        text = normalise(field(paragraph, "paragraph_text", str, inside))
        if text:
            title, hop = (
                normalise(field(paragraph, "title", str, inside)),
                hops.get(paragraph.get("idx", number), UNKNOWN),
            )
            paragraphs.append(Paragraph(title, text, bool(paragraph.get("is_supporting")), hop))
    return Published(given_id(row, question), question, answers, tuple(paragraphs))


def convert_squad(row: Row, where: str) -> Published:
    """SQuAD: the paragraph is the document; it has no pool."""
    given = row.get("answers")
    if isinstance(given, dict):  # columns, as dataset hubs have them
        answers = given.get("text")
    else:
        answers = [field(answer, "text", str, where) for answer in field(row, "answers", list, where)]
    question, kept = question_and_answers(row, answers, where)
    title = str(row.get("title") or "").replace("_", " ")
    document = Paragraph(normalise(title), normalise(field(row, "context", str, where)), True)
    return Published(str(field(row, "id", str, where)), question, kept, (document,))


def convert_nq_open(row: Row, where: str) -> Published:
    """NQ-open: questions with aliases, no documents."""
    question, answers = question_and_answers(row, field(row, "answer", list, where), where)
    return Published(hashed_id(question), question, answers)


def convert_jsonl(row: Row, where: str) -> Published:
    """One's own: `question`, `answers` (list) or `answer`; perhaps `id`, `positive_ids`, `candidate_ids`, `split`."""
    answers = row.get("answers", row.get("answer"))
    if answers is None:
        raise InputError(f"{where}: no field 'answers' or 'answer' (there are {', '.join(sorted(row))})")
    question, kept = question_and_answers(row, [answers] if isinstance(answers, str) else answers, where)
    positive_ids, candidate_ids = (ids(row.get(name) or [], name, where) for name in ("positive_ids", "candidate_ids"))
    split = row.get("split") or ""
    if not isinstance(split, str) or split.strip() not in SPLITS:
        raise InputError(f"{where}: split is {split!r:.80}; expected train, seen or unseen, or none")
    return Published(given_id(row, question), question, kept, (), positive_ids, candidate_ids, split.strip())
