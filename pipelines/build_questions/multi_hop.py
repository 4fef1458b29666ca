"""HotpotQA, 2WikiMultihopQA and MuSiQue, in the shapes in which hubs publish them; SQuAD."""

from collections.abc import Iterator, Mapping
from typing import Any

from clara.data.records import normalise
from clara.errors import InputError
from pipelines.build_questions.hops import UNKNOWN, decomposition_hops, fact_hops
from pipelines.build_questions.published import ANSWERS, Paragraph, Published, answers_of, plain_rows, whole_object
from pipelines.build_questions.row import (
    Row,
    answered,
    field,
    given_id,
    objects,
    question_of,
    same_length,
    text_of,
    texts,
    truth,
)
from pipelines.build_questions.stored_text import parsed

NO_TEXT = "paragraphs without a text"
NO_PARAGRAPH = "supporting facts whose paragraph is not in the context"
_BODIES = ("sentences", "content", "text", "paragraph_text", "paragraphs", "sentence")

# --- HotpotQA, 2WikiMultihopQA ---------------------------------------------------------------------------------------


def convert_hotpotqa(row: Row) -> Published:
    """HotpotQA and 2WikiMultihopQA: `context` and `supporting_facts`."""
    question = question_of(row)
    answers = answers_of(row, question, ANSWERS)
    paragraphs, notes = context_paragraphs(row, str(row.get("type", "")), question)
    return Published(given_id(row), question, answers, paragraphs, notes=notes)


def context_paragraphs(row: Row, kind: str, question: str) -> tuple[tuple[Paragraph, ...], tuple[str, ...]]:
    """The paragraphs of `context`, right where `supporting_facts` names their title; and notes for `Published`.

    Raises:
        InputError: one of them is malformed, or there is no context.
    """
    if "context" not in row:
        field(row, "context", object)  # raises
    pairs = _titled(row, "context")
    named = _fact_titles(row.get("supporting_facts"), row.where)
    hops = fact_hops(kind, question, list(dict.fromkeys(named)))
    paragraphs = tuple(Paragraph(title, text, title in hops, hops.get(title, UNKNOWN)) for title, text in pairs if text)
    notes = [NO_TEXT for _, text in pairs if not text]
    notes += [NO_PARAGRAPH for title in hops if title not in {paragraph.title for paragraph in paragraphs}]
    return paragraphs, tuple(notes)


def _titled(row: Row, name: str) -> list[tuple[str, str]]:
    """Titles and texts of pairs, of objects, of columns, or of an object by title; each perhaps as text.

    Raises:
        InputError: none of these.
    """
    value, where = row[name], row.where
    found = parsed(value)
    if isinstance(found, Mapping):
        body = next((body for body in _BODIES if body in found), "")
        if "title" in found and body:
            part = row.part(name, found, where)
            columns = {column: parsed(part[column]) for column in ("title", body)}
            if not all(isinstance(values, list | tuple) for values in columns.values()):
                raise malformed(name, value, where)
            same_length(columns, name, where)
            found = list(zip(*columns.values(), strict=True))
        else:
            found = list(found.items())
    if not isinstance(found, list | tuple):
        raise malformed(name, value, where)
    return [_pair(parsed(entry), row, name, f"{where} paragraph {number}") for number, entry in enumerate(found)]


def _pair(entry: Any, row: Row, name: str, where: str) -> tuple[str, str]:
    if isinstance(entry, Mapping):
        body = next((body for body in _BODIES if body in entry), "")
        part = row.part(name, entry, where)
        entry = (part["title"], part[body]) if body and "title" in entry else ()
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        raise malformed(name, entry, where)
    return text_of(entry[0], "title", where), _joined(entry[1], name, where)


def _joined(value: Any, name: str, where: str) -> str:
    """The text of a paragraph: sentences, or one string."""
    body = parsed(value)
    if isinstance(body, str | bytes):
        return text_of(value, name, where)
    if not isinstance(body, list | tuple) or not all(isinstance(sentence, str) for sentence in body):
        if isinstance(value, str):
            return normalise(value)
        raise malformed(name, value, where)
    return normalise(" ".join(body))


def malformed(name: str, value: Any, where: str) -> InputError:
    """The error for a context in a shape that nobody publishes."""
    return InputError(
        f"{where}: {name} is malformed, {value!r:.80}; expected [[title, [sentence, …]], …], a list of objects with "
        "title and sentences, or an object of such lists"
    )


def _fact_titles(value: Any, where: str) -> list[str]:
    """Titles of supporting facts: pairs, objects, columns, or titles alone; none where the row has none."""
    found = parsed(value)
    if isinstance(found, Mapping):
        found = parsed(found.get("title"))
    if found is None:
        return []
    if not isinstance(found, list | tuple):
        raise malformed("supporting_facts", value, where)
    titles = []
    for entry in map(parsed, found):
        title = entry.get("title") if isinstance(entry, Mapping) else entry
        if isinstance(title, list | tuple):
            title = title[0] if title else None
        if title is None:
            raise malformed("supporting_facts", entry, where)
        titles.append(text_of(title, "supporting_facts", where))
    return titles


# --- MuSiQue ---------------------------------------------------------------------------------------------------------


def convert_musique(row: Row) -> Published:
    """MuSiQue: `paragraphs` with `is_supporting`, aliases beside the answer."""
    if "answerable" in row and not truth(row["answerable"], "answerable", row.where):
        raise InputError(f"{row.where}: answerable is false; use MuSiQue-Ans, or --skip-bad")
    question = question_of(row)
    aliases = texts(row.get("answer_aliases") or (), "answer_aliases", row.where)
    answers = answered(row, question, [*answers_of(row, question, ANSWERS), *aliases])
    steps = objects(row.get("question_decomposition") or [], "question_decomposition", row.where)
    hops = decomposition_hops(steps, row.where)
    if "paragraphs" not in row:
        field(row, "paragraphs", list)  # raises
    paragraphs, notes = [], []
    given = objects(row["paragraphs"], "paragraphs", row.where, "paragraph_text")
    row.parts += [("paragraphs", paragraph) for paragraph in given]
    for number, paragraph in enumerate(given):
        text = normalise(field(paragraph, "paragraph_text", str))
        if not text:
            notes.append(NO_TEXT)
            continue
        place = text_of(paragraph.get("idx", number), "idx", paragraph.where)
        hop = hops.get(int(place), UNKNOWN) if place.isdecimal() else UNKNOWN
        right = truth(paragraph.get("is_supporting"), "is_supporting", paragraph.where)
        paragraphs.append(Paragraph(normalise(field(paragraph, "title", str)), text, right, hop))
    return Published(given_id(row), question, answers, tuple(paragraphs), notes=tuple(notes))


# --- SQuAD -----------------------------------------------------------------------------------------------------------


def squad_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Questions of a SQuAD file with their paragraphs: nested as published, or one row a question as on dataset hubs.

    Raises:
        InputError: neither of both.
    """
    whole = whole_object(path)
    if whole is None or "context" in whole:  # no single JSON value: a line or a Parquet row for each question
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


def convert_squad(row: Row) -> Published:
    """SQuAD: the paragraph is the document; it has no pool."""
    question = question_of(row)
    if truth(row.get("is_impossible"), "is_impossible", row.where):
        raise InputError(f"{row.where}: is_impossible is true; use SQuAD 1.1, or --skip-bad")
    given = parsed(row.get("answers"))
    if isinstance(given, Mapping):  # columns, as dataset hubs have them
        answers = given.get("text")
    else:
        listed = field(row, "answers", list)
        if all(isinstance(answer, str) for answer in listed):
            answers = listed
        else:
            answers = [field(answer, "text", str) for answer in objects(given, "answers", row.where, "text")]
    kept = answered(row, question, answers)
    title = str(row.get("title") or "").replace("_", " ")
    document = Paragraph(normalise(title), normalise(field(row, "context", str)), True)
    return Published(given_id(row) or field(row, "id", str), question, kept, (document,))
