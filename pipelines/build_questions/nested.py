"""Questions whose answers or documents are nested: KILT, MRQA, BioASQ, ELI5, Natural Questions."""

from collections.abc import Iterator, Mapping
from typing import Any

from clara.data.records import normalise
from clara.errors import InputError
from pipelines.build_questions.multi_hop import NO_TEXT
from pipelines.build_questions.published import Paragraph, Published, answers_of, passage_of, plain_rows
from pipelines.build_questions.row import (
    Row,
    answered,
    field,
    given_id,
    ids,
    is_empty,
    objects,
    question_of,
    text_of,
    truth,
    whole_numbers,
)
from pipelines.build_questions.stored_text import parsed


def convert_kilt(row: Row) -> Published:
    """KILT: `input`; `output` holds answers, and provenance, whose `wikipedia_id` name documents of its corpus."""
    question, found = question_of(row, "input"), []
    answers: list[Any] = []
    for number, output in enumerate(_list(row, "output")):
        part = row.part("output", parsed(output), f"{row.where} output {number}")
        if not is_empty(part.get("answer")):
            answers.append(text_of(part["answer"], "answer", part.where))
        for place, source in enumerate(_list(part, "provenance")):
            page = part.part("output.provenance", parsed(source), f"{part.where} provenance {place}")
            found.append(page.get("wikipedia_id"))
    positives = ids(found, "wikipedia_id", row.where)
    kept = () if positives and not any(answers) else answered(row, question, answers)
    return Published(given_id(row), question, kept, (), positives)


def mrqa_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Questions of MRQA, each with its context; the first line is a header."""
    for where, row in plain_rows(path):
        if isinstance(row, Mapping) and "header" in row and "qas" not in row:
            continue
        questions = parsed(row.get("qas")) if isinstance(row, Mapping) else None
        if not isinstance(questions, list):
            yield where, row
            continue
        shared = {"context_id" if name == "id" else name: value for name, value in row.items() if name != "qas"}
        for number, question in enumerate(questions, 1):
            own = {**shared, **question} if isinstance(question, Mapping) else question
            yield f"{where} question {number}", own


def convert_mrqa(row: Row) -> Published:
    """MRQA: the context is the document; the context's `id`, if any, is its id."""
    question = question_of(row)
    answers = answers_of(row, question, ("answers",))
    text = normalise(field(row, "context", str))
    if not text:
        raise InputError(f"{row.where}: context is empty; leave the row out, or use --skip-bad")
    own = ids([row.get("context_id")], "id of the context", row.where)
    return Published(given_id(row), question, answers, (Paragraph("", text, True, id=own[0] if own else ""),))


def convert_bioasq(row: Row) -> Published:
    """BioASQ: `body`; `exact_answer` with synonyms, or else `ideal_answer`; `snippets` are the documents."""
    question = question_of(row, "body")
    exact, ideal = parsed(row.get("exact_answer")), parsed(row.get("ideal_answer"))
    given = ideal if is_empty(exact) else exact
    items = given if isinstance(given, list | tuple) else [given]
    answers = [name for item in items for name in (item if isinstance(item, list | tuple) else [item])]
    snippets = enumerate(_list(row, "snippets"))
    passages = tuple(passage_of(snippet, row, "snippets", number, True) for number, snippet in snippets)
    if any(not passage.text for passage in passages):
        raise InputError(f"{row.where}: a snippet has no text; leave the row out, or use --skip-bad")
    kept = answered(row, question, [answer for answer in answers if not is_empty(answer)])
    return Published(given_id(row), question, kept, passages)


def convert_eli5(row: Row) -> Published:
    """ELI5: `title` and `selftext` ask; `answers` holds texts in the order of their scores."""
    asked = [text_of(row.get(name) or "", name, row.where) for name in ("title", "selftext")]
    question = " ".join(filter(None, asked)) or question_of(row, "title")
    answers = row.part("answers", parsed(field(row, "answers", dict)), f"{row.where} answers")
    question_id = given_id(row) or text_of(row.get("q_id") or "", "q_id", row.where)
    return Published(question_id, question, answered(row, question, field(answers, "text", list)))


def convert_nq(row: Row) -> Published:
    """Natural Questions: top-level `long_answer_candidates` are the pool, short answers or yes and no the answers."""
    question, tokens = question_of(row, "question_text"), _tokens(row)
    title = text_of(row.get("document_title") or "", "document_title", row.where)
    answers: list[str] = []
    right: set[tuple[int, int]] = set()
    for number, annotation in enumerate(_list(row, "annotations")):
        part = row.part("annotations", annotation, f"{row.where} annotations {number}")
        spans = [part.part("short_answers", short, part.where) for short in _list(part, "short_answers")]
        answers += [_said(tokens, *_span(span)) for span in spans]
        verdict = str(part.get("yes_no_answer", "")).lower()
        answers += [verdict] if verdict in ("yes", "no") else []
        if not is_empty(part.get("long_answer")):
            right.add(_span(part.part("long_answer", part["long_answer"], part.where)))
    places = dict.fromkeys(span for span in sorted(right) if span[0] >= 0)
    for number, entry in enumerate(_list(row, "long_answer_candidates")):
        candidate = row.part("long_answer_candidates", entry, f"{row.where} long_answer_candidates {number}")
        span = _span(candidate)
        if truth(candidate.get("top_level", True), "top_level", candidate.where):
            places[span] = None
    found = [Paragraph(title, _said(tokens, *span), span in right) for span in places]
    notes = [NO_TEXT for paragraph in found if not paragraph.text]
    paragraphs = tuple(paragraph for paragraph in found if paragraph.text)
    return Published(_example_id(row), question, answered(row, question, answers), paragraphs, notes=tuple(notes))


def _example_id(row: Row) -> str:
    return given_id(row) or "".join(ids([row.get("example_id")], "example_id", row.where))


def _tokens(row: Row) -> list[str]:
    """The tokens of the page; those of its markup are empty."""
    if not is_empty(row.get("document_text")):
        tokens = field(row, "document_text", str).split(" ")
        return ["" if token[:1] == "<" and token[-1:] == ">" else token for token in tokens]
    listed = objects(field(row, "document_tokens", list), "document_tokens", row.where, "token")
    return ["" if truth(t.get("html_token"), "html_token", t.where) else str(t.get("token", "")) for t in listed]


def _span(part: Row) -> tuple[int, int]:
    """First token, and the one behind the last."""
    start, end = (whole_numbers(part.get(name), name, part.where) for name in ("start_token", "end_token"))
    if len(start) != 1 or len(end) != 1:
        raise InputError(f"{part.where}: start_token and end_token are {start} and {end}; expected a number each")
    return start[0], end[0]


def _said(tokens: list[str], start: int, end: int) -> str:
    return normalise(" ".join(filter(None, tokens[max(0, start) : max(0, end)])))


def _list(row: Row, name: str) -> list[Any]:
    """A list of a row; empty where there is nothing.

    Raises:
        InputError: it is something else.
    """
    return [] if is_empty(row.get(name)) else list(field(row, name, list))
