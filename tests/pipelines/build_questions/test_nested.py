"""Questions with nested answers or documents, as KILT, MRQA, BioASQ, ELI5 and Natural Questions are published."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from clara.data.questions import Question, read_questions
from clara.data.records import document_id
from clara.errors import InputError
from pipelines.build_questions.command import main
from tests.helpers.nested_questions import BIOASQ, ELI5, KILT, MRQA, NQ, QUESTION, SNIPPET

BO, RIVER, ADA = document_id("", "Bo is a river."), document_id("", "Bo is a river ."), document_id("", "Ada runs it .")
NQ_TOKENS = [{"token": t, "html_token": t.startswith("<")} for t in str(NQ["document_text"]).split(" ")]


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES: dict[str, tuple[str, bytes, list[Question]]] = {
    "kilt": ("nq-dev-kilt.jsonl", lines(KILT), [Question("k1", "who runs it", ("Ada", "Ada L."), ("12", "13"))]),
    "kilt, no answer": (
        "a.jsonl",
        lines({**KILT, "output": [KILT["output"][2]]}),
        [Question("k1", "who runs it", (), ("13",))],
    ),
    "mrqa": (
        "SQuAD.jsonl.gz",
        gzip.compress(lines(*MRQA)),
        [Question("q1", "Where?", ("Bo", "the Bo"), ("c1",)), Question("q2", "Why?", ("Bo", "the Bo"), ("c1",))],
    ),
    "mrqa, one row a question": (
        "train.jsonl",
        lines({**QUESTION, "subset": "SQuAD", "context": "Bo is a river.", "context_tokens": []}),
        [Question("q1", "Where?", ("Bo", "the Bo"), (BO,))],
    ),
    "squad, answers as strings": (
        "a.jsonl",
        lines({"id": "s1", "question": "Where?", "context": "Bo is a river.", "answers": ["Bo"]}),
        [Question("s1", "Where?", ("Bo",), (BO,))],
    ),
    "bioasq": (
        "training10b.json",
        json.dumps(BIOASQ, indent=1).encode(),
        [
            Question("b1", "Which?", ("Bo", "the Bo", "Ar"), (BO,)),
            Question("b2", "Is it?", ("yes",)),
            Question("b3", "What of it?", ("It flows.",), (BO,)),
        ],
    ),
    "eli5": ("eli5.jsonl", lines(ELI5), [Question("e1", "Why? I ask.", ("So.", "Thus."))]),
    "nq": ("nq.jsonl", lines(NQ), [Question("79", "who runs it", ("Ada",), (ADA,), (ADA, RIVER))]),
    "nq, whole": (
        "nq.jsonl",
        lines({name: value for name, value in NQ.items() if name != "document_text"} | {"document_tokens": NQ_TOKENS}),
        [Question("79", "who runs it", ("Ada",), (ADA,), (ADA, RIVER))],
    ),
}


def build(folder: Path, name: str, data: bytes, *extra: str) -> list[Question]:
    (folder / name).write_bytes(data)
    assert main(["--input", str(folder / name), "--output", str(folder / "out"), *extra]) == 0
    return read_questions(folder / "out", answers=False)


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("given", [False, True])
def test_they_are_detected_and_read(tmp_path: Path, case: str, given: bool) -> None:
    name, data, expected = FILES[case]
    form = ["--format", case.partition(",")[0]] if given else []
    found = build(tmp_path, name, data, *form)
    assert [(q.question_id, q.question, q.answers, q.positive_ids, sorted(q.candidate_ids)) for q in found] == [
        (q.question_id, q.question, q.answers, q.positive_ids, sorted(q.candidate_ids)) for q in expected
    ]


def test_documents_of_mrqa_keep_the_ids_of_contexts(tmp_path: Path) -> None:
    build(tmp_path, "a.jsonl", lines(*MRQA), "--corpus-output", str(tmp_path / "corpus.jsonl"))
    row = {"id": "c1", "title": "", "text": "Arlen sits on Bo."}
    assert (tmp_path / "corpus.jsonl").read_bytes() == lines(row)


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("kilt", {"id": "k", "input": "who"}, r":1: question 'who' has no answer"),
        ("kilt", {**KILT, "output": [{"provenance": [5]}]}, r"output 0 provenance 0: 5 where an object"),
        ("kilt", {**KILT, "output": [{"provenance": [{"wikipedia_id": [1]}]}]}, r"wikipedia_id: \[1\] is list"),
        ("mrqa", {"context": "x", "qas": "none"}, r":1: no field 'question'"),
        ("mrqa", {"context": " ", "qas": [QUESTION]}, r"question 1: context is empty"),
        ("mrqa", {"context": "x", "qas": [5]}, r"question 1: 5 where an object"),
        ("bioasq", {"body": "Which?", "snippets": [SNIPPET]}, "question 'Which\\?' has no answer"),
        ("bioasq", {"body": "Which?", "exact_answer": "x", "snippets": [{}]}, "snippets 0: no field 'text'"),
        ("eli5", {**ELI5, "answers": {"score": [1]}}, "answers: no field 'text'"),
        ("eli5", {**ELI5, "title": "", "selftext": None}, "title is empty"),
        ("bioasq", {"body": "Which?", "exact_answer": "x", "snippets": r"[{'text': '\ud800'}]"}, "snippets is .* list"),
        ("clara", {"question": "Who?", "answer": "a", "docs": r'["\ud800"]'}, "docs is .* expected list"),
        ("nq", {**NQ, "annotations": [{"long_answer": {"start_token": [], "end_token": 6}}]}, "expected a number each"),
        ("nq", {**NQ, "annotations": []}, "has no answer"),
        ("nq", {**NQ, "long_answer_candidates": [{"start_token": "a"}]}, "start_token is 'a'; expected whole numbers"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, form: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(tmp_path, "a.jsonl", lines(row), "--format", form)
    assert "a.jsonl" in str(caught.value)


def test_fields_that_are_not_read_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    build(tmp_path, "a.jsonl", lines(KILT))
    assert "`output.provenance.title`, `output.provenance.start_paragraph_id` are not read" in caplog.text
    build(tmp_path, "b.jsonl", lines(*MRQA, {**MRQA[1], "context_tokens": [1], "qas": [{**QUESTION, "qid": "q3"}]}))
    assert "`context_tokens`" in caplog.text


@pytest.mark.parametrize("form", ["jsonl", "squad", "triviaqa"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_name_that_occurs_twice_is_refused(tmp_path: Path, form: str, name: str) -> None:
    data = b'{"question": "Who?", "question": "What?", "answers": ["Ada"]}\n'
    with pytest.raises(InputError, match=r"a\.jsonl?.*'question' occurs twice in an object; keep one of its values"):
        build(tmp_path, name, data, "--format", form)
