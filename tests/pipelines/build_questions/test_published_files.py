"""Question files in the formats of the field: each is detected, and gives its questions, pools and documents."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara.data.questions import Question, read_questions
from clara.data.records import document_id
from clara.errors import InputError
from clara.storage.manifest import read_manifest
from pipelines.build_questions.command import main
from tests.helpers.question_files import DYKE, DYKE_ROW, OTHER, write

MAYOR = document_id("Arlen", "The mayor of Arlen is Mirel Tove.")
MARKET = document_id("Jorvik", "The market of Jorvik sells herring.")
DOCS = ["Arlen\nThe mayor of Arlen is Mirel Tove.", "Jorvik\n  The market of Jorvik sells herring."]
CLARA = {"question": "Who is the mayor of Arlen?", "docs": DOCS, "answer": "Mirel Tove", "pos_index": [0]}
DPR = {
    "dataset": "towns",
    "question": "who is the mayor of arlen",
    "answers": ["Mirel Tove"],
    "positive_ctxs": [{"title": "Arlen", "text": "The mayor of Arlen is Mirel Tove.", "passage_id": "11"}],
    "negative_ctxs": [],
    "hard_negative_ctxs": [{"title": "Jorvik", "text": "The market of Jorvik sells herring.", "passage_id": "12"}],
}
FID = {
    "id": "7",
    "question": "Who is the mayor of Arlen?",
    "target": "Mirel Tove",
    "answers": ["Tove"],
    "ctxs": [
        {"id": 11, "title": "Arlen", "text": "The mayor of Arlen is Mirel Tove.", "score": "1.5", "has_answer": True},
        {"id": 12.0, "title": "Jorvik", "text": "The market of Jorvik sells herring.", "has_answer": "False"},
    ],
}


def build(tmp_path: Path, file: str, *extra: str) -> list[Question]:
    assert main(["--input", file, "--output", str(tmp_path / "out"), *extra]) == 0
    return read_questions(tmp_path / "out", answers=False)


@pytest.mark.parametrize(
    ("form", "row", "expected"),
    [
        ("clara", CLARA, (("Mirel Tove",), {MAYOR}, {MAYOR, MARKET})),
        ("clara", {**CLARA, "pos_index": "[0, 1]"}, (("Mirel Tove",), {MAYOR, MARKET}, {MAYOR, MARKET})),
        ("clara", {**CLARA, "pos_index": 1.0}, (("Mirel Tove",), {MARKET}, {MAYOR, MARKET})),
        ("clara", {**CLARA, "gold_answers": ["Tove"]}, (("Mirel Tove", "Tove"), {MAYOR}, {MAYOR, MARKET})),
        (
            "clara",
            {"question": "Who?", "docs": DOCS, "gold_answer": "Tove", "pos_index": []},
            (("Tove",), set(), {MAYOR, MARKET}),
        ),
        ("dpr", DPR, (("Mirel Tove",), {"11"}, {"11", "12"})),
        ("fid", FID, (("Tove", "Mirel Tove"), {"11"}, {"11", "12"})),
        (
            "fid",
            {"question": "Who?", "answers": ["Tove"], "passages": [DPR["positive_ctxs"][0]]},
            (("Tove",), set(), {"11"}),
        ),
        (
            "flashrag",
            {"id": "t0", "question": "Who?", "golden_answers": ["Mirel Tove", "Tove"], "metadata": {"type": "bridge"}},
            (("Mirel Tove", "Tove"), set(), set()),
        ),
        (
            "flashrag",
            {
                "question": "Who?",
                "golden_answers": ["Tove"],
                "metadata": {
                    "context": {"title": ["Arlen"], "content": [["Mirel Tove leads Arlen.", "It has a dyke."]]},
                    "supporting_facts": {"title": ["Arlen"], "sent_id": [0]},
                },
            },
            (("Tove",), {DYKE}, {DYKE}),
        ),
        ("popqa", {"id": 7, "question": "Who?", "possible_answers": '["Mirel Tove", "Tove"]'}, "two"),
        (
            "triviaqa",
            {
                "question_id": "tc_1",
                "question": "Who?",
                "answer": {"value": "Mirel Tove", "aliases": ["Mirel Tove", "Tove"], "normalized_value": "mirel tove"},
            },
            "two",
        ),
        (
            "triviaqa",
            {
                "Data": [
                    {"QuestionId": "tc_1", "Question": "Who?", "Answer": {"Value": "Mirel Tove", "Aliases": ["Tove"]}}
                ]
            },
            "two",
        ),
        ("nq-open", {"question": "who", "answer": ["Mirel Tove", "Tove"]}, "two"),
        ("hotpotqa", DYKE_ROW, (("Mirel Tove",), {DYKE}, {DYKE, OTHER})),
        ("2wiki", {**DYKE_ROW, "type": "compositional"}, (("Mirel Tove",), {DYKE}, {DYKE, OTHER})),
    ],
)
def test_formats_are_detected_and_read(tmp_path: Path, form: str, row: Any, expected: Any) -> None:
    if expected == "two":
        expected = (("Mirel Tove", "Tove"), set(), set())
    file = write(tmp_path / "questions.jsonl", row)
    (question,) = build(tmp_path, file)
    assert read_manifest(tmp_path / "out")["made_by"]["recipe"]["format"] == form
    assert (question.answers, set(question.positive_ids), set(question.candidate_ids)) == expected
    assert build(tmp_path, file, "--format", form) == [question]


@pytest.mark.parametrize(("name", "form"), [("search-r1", "flashrag"), ("atlas", "fid"), ("colbert", "msmarco")])
def test_formats_of_other_names(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / "qrels.tsv").write_text("7\t0\t11\t1\n")
    row = {"flashrag": {"question": "Who?", "golden_answers": ["Tove"]}, "fid": FID}.get(form)
    file = write(tmp_path / "rows.jsonl", row)
    extra = []
    if form == "msmarco":
        (tmp_path / "rows.jsonl").write_text("7\twho is it\n")
        extra = ["--qrels", str(tmp_path / "qrels.tsv")]
    assert len(build(tmp_path, file, "--format", name, *extra)) == 1
    assert read_manifest(tmp_path / "out")["made_by"]["recipe"]["format"] == form


def test_where_the_format_is_not_certain_the_error_names_all(tmp_path: Path) -> None:
    unsure = {**DYKE_ROW, "type": "comparison"}
    with pytest.raises(InputError, match=r"may be of the formats 2wiki and hotpotqa; .*--format 2wiki or --format hot"):
        build(tmp_path, write(tmp_path / "a.jsonl", unsure))
    assert build(tmp_path, write(tmp_path / "b.jsonl", unsure, {**DYKE_ROW, "_id": "h2", "question": "What?"}))
    with pytest.raises(InputError, match="beir and cloze and msmarco"):
        build(tmp_path, write(tmp_path / "c.jsonl", {"_id": "1", "text": "what is it"}))
    with pytest.raises(InputError, match=r"d.jsonl:1: fields prompt, reply are of no format that is known"):
        build(tmp_path, write(tmp_path / "d.jsonl", {"prompt": "a", "reply": "b"}))
    with pytest.raises(InputError, match="may be of the formats clara and dpr"):
        build(tmp_path, write(tmp_path / "e.jsonl", CLARA, DPR))


def test_documents_keep_the_ids_that_they_bring(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    file = write(tmp_path / "dpr.json", DPR)
    build(tmp_path, file, "--corpus-output", str(corpus))
    written = [json.loads(line) for line in corpus.read_text().splitlines()]
    assert {row["id"]: row["title"] for row in written} == {"11": "Arlen", "12": "Jorvik"}
    (question,) = build(tmp_path, file, "--document-ids", "content")
    assert question.positive_ids == (MAYOR,)
    other = {**DPR, "question": "what?", "positive_ctxs": [{"title": "Arlen", "text": "Another.", "passage_id": 11}]}
    with pytest.raises(InputError, match=r":2: document id '11' has the text 'Another.' here.*--document-ids content"):
        build(tmp_path, write(tmp_path / "local.jsonl", DPR, other))
    with pytest.raises(InputError, match="--format clara brings no ids of documents"):
        build(tmp_path, write(tmp_path / "c.jsonl", CLARA), "--document-ids", "content")
    file = write(tmp_path / "f.jsonl", {"question": "Who?", "golden_answers": ["Tove"]})
    with pytest.raises(InputError, match=r"no row of .* brings documents"):
        build(tmp_path, file, "--corpus-output", str(corpus))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**CLARA, "pos_index": [2]}, r":1: pos_index has 2, and docs holds 2; expected 0 to 1"),
        ({**CLARA, "pos_index": [-1]}, r":1: pos_index has -1"),
        ({**CLARA, "pos_index": ["first"]}, r":1: pos_index is \['first'\]; expected whole numbers"),
        ({**CLARA, "docs": ["Arlen\nIts mayor.", " "]}, r":1: passage 1 of 2 has no text"),
        ({**CLARA, "docs": [3]}, r":1 docs 0: 3 where an object is expected"),
        ({**DPR, "positive_ctxs": [{"title": "", "body": "x"}]}, r"positive_ctxs 0: no field 'text' \(there are body"),
        (
            {**FID, "ctxs": [{**FID["ctxs"][0], "has_answer": "maybe"}]},
            r"has_answer is 'maybe'; expected true or false",
        ),
        ({"question": "Who?", "golden_answers": []}, "has no answer"),
        ({"question": "Who?", "answer": {"value": 3, "aliases": "x"}}, "aliases is 'x'; expected a list"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path, write(tmp_path / "bad.jsonl", row))


def test_parquet_with_lists_of_any_kind_is_read(tmp_path: Path) -> None:
    passage = pa.struct([("title", pa.large_string()), ("text", pa.large_string()), ("passage_id", pa.int64())])
    schema = pa.schema(
        [
            ("question", pa.large_binary()),
            ("answers", pa.large_list(pa.large_string())),
            ("positive_ctxs", pa.large_list(passage)),
            ("hard_negative_ctxs", pa.list_(passage)),
        ]
    )
    row = {
        "question": "Wer führt Arlen?".encode(),
        "answers": ["Mirel Tove"],
        "positive_ctxs": [{"title": "Arlen", "text": "Its mayor.", "passage_id": 11}],
        "hard_negative_ctxs": None,
    }
    pq.write_table(pa.Table.from_pylist([row], schema), tmp_path / "rows.parquet")
    (question,) = build(tmp_path, str(tmp_path / "rows.parquet"))
    assert (question.question, question.positive_ids) == ("Wer führt Arlen?", ("11",))
