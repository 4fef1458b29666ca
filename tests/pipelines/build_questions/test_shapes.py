"""The shapes that one published set has on hubs and after tables: all are the same questions, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from clara.data.questions import Question, read_questions
from clara.errors import InputError
from pipelines.build_questions.command import main
from tests.helpers.question_files import DYKE, DYKE_ROW, OTHER, write

SENTENCES = [["Mirel Tove leads Arlen.", "It has a dyke."], ["Jorvik has a market."]]
STRINGS = ["Mirel Tove leads Arlen. It has a dyke.", "Jorvik has a market."]
TITLES = ["Arlen", "Jorvik"]
CONTEXTS = [
    DYKE_ROW["context"],
    [list(pair) for pair in zip(TITLES, STRINGS, strict=True)],
    {"title": TITLES, "sentences": SENTENCES},
    {"title": TITLES, "sentences": STRINGS},
    {"title": TITLES, "content": SENTENCES},
    [{"title": t, "sentences": s} for t, s in zip(TITLES, SENTENCES, strict=True)],
    [{"title": t, "content": s} for t, s in zip(TITLES, STRINGS, strict=True)],
    dict(zip(TITLES, SENTENCES, strict=True)),
    json.dumps(DYKE_ROW["context"]),
    repr(DYKE_ROW["context"]),
    [json.dumps(pair) for pair in DYKE_ROW["context"]],
    {"title": json.dumps(TITLES), "sentences": json.dumps(SENTENCES)},
    {"title": TITLES, "sentences": [json.dumps(s) for s in SENTENCES]},
]
FACTS = [
    [["Arlen", 0], ["Arlen", 1]],
    {"title": ["Arlen", "Arlen"], "sent_id": [0, 1]},
    [{"title": "Arlen", "sent_id": 0}],
    json.dumps([["Arlen", 0]]),
    json.dumps({"title": ["Arlen"], "sent_id": [0]}),
    [json.dumps(["Arlen", 0])],
    ["Arlen"],
]


def build(tmp_path: Path, form: str, row: Any, *extra: str) -> list[Question]:
    file = write(tmp_path / "rows.jsonl", row)
    assert main(["--input", file, "--format", form, "--output", str(tmp_path / "out"), *extra]) == 0
    return read_questions(tmp_path / "out")


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
@pytest.mark.parametrize("form", ["hotpotqa", "2wiki"])
def test_contexts(tmp_path: Path, form: str, context: Any) -> None:
    (question,) = build(tmp_path, form, {**DYKE_ROW, "context": context})
    assert question.positive_ids == (DYKE,)
    assert set(question.candidate_ids) == {DYKE, OTHER}


@pytest.mark.parametrize("facts", FACTS, ids=str)
def test_supporting_facts(tmp_path: Path, facts: Any) -> None:
    (question,) = build(tmp_path, "hotpotqa", {**DYKE_ROW, "supporting_facts": facts})
    assert question.positive_ids == (DYKE,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"context": {"title": TITLES, "sentences": SENTENCES[:1]}},
            "context has 2 title, 1 sentences; expected as many",
        ),
        ({"context": [["Arlen"]]}, "context is malformed"),
        ({"context": [["Arlen", 3]]}, "context is malformed, 3"),
        ({"context": [{"title": "Arlen", "sents": ["a"]}]}, "context is malformed"),
        ({"context": "Arlen is a town."}, "context is malformed, 'Arlen is a town.'"),
        ({"context": [["Arlen", ["a", 3]]]}, "context is malformed"),
        ({"supporting_facts": "Arlen"}, "supporting_facts is malformed"),
        ({"supporting_facts": [[]]}, "supporting_facts is malformed"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path, "hotpotqa", {**DYKE_ROW, **change})
    with pytest.raises(InputError, match=r"no field 'context' .*did you mean 'contexts'"):
        build(tmp_path, "hotpotqa", {**{k: v for k, v in DYKE_ROW.items() if k != "context"}, "contexts": []})


def test_facts_without_a_paragraph_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, "hotpotqa", {**DYKE_ROW, "supporting_facts": [["Arlen", 0], ["Brask", 0]]})
    assert any("1 supporting facts whose paragraph is not in the context" in line for line in caplog.messages)


# --- MuSiQue ---------------------------------------------------------------------------------------------------------

PARAGRAPHS = [
    {"idx": 0, "title": "Arlen", "paragraph_text": "Mirel Tove leads Arlen.", "is_supporting": True},
    {"idx": 1, "title": "Ona", "paragraph_text": "Ona lives in Arlen.", "is_supporting": True},
    {"idx": 2, "title": "Jorvik", "paragraph_text": "Jorvik has a market.", "is_supporting": False},
]
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who leads the town where Ona lives?",
    "answer": "Mirel Tove",
    "answer_aliases": ["Tove"],
    "answerable": True,
    "question_decomposition": [
        {"id": 1, "question": "Where does Ona live?", "answer": "Arlen", "paragraph_support_idx": 1},
        {"id": 2, "question": "Who leads #1?", "answer": "Mirel Tove", "paragraph_support_idx": 0},
    ],
    "paragraphs": PARAGRAPHS,
}


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize(
    "change",
    [
        {"paragraphs": [{**p, "is_supporting": str(p["is_supporting"])} for p in PARAGRAPHS]},
        {"paragraphs": [{**p, "is_supporting": float(p["is_supporting"]), "idx": str(p["idx"])} for p in PARAGRAPHS]},
        {"paragraphs": [{**p, "is_supporting": "yes" if p["is_supporting"] else "no"} for p in PARAGRAPHS]},
        {"paragraphs": columns(PARAGRAPHS)},
        {"paragraphs": json.dumps(PARAGRAPHS)},
        {"paragraphs": repr(PARAGRAPHS)},
        {"question_decomposition": columns(MUSIQUE["question_decomposition"])},
        {"question_decomposition": json.dumps(MUSIQUE["question_decomposition"])},
        {"answer_aliases": '["Tove"]', "answerable": "True"},
        {"answerable": 1},
    ],
    ids=str,
)
def test_musique(tmp_path: Path, change: dict[str, Any]) -> None:
    (expected,) = build(tmp_path, "musique", MUSIQUE)
    assert (len(expected.positive_ids), len(expected.candidate_ids), expected.positive_hops) == (2, 3, (2, 1))
    assert build(tmp_path, "musique", {**MUSIQUE, **change}) == [expected]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerable": "False"}, "answerable is false"),
        ({"answerable": "perhaps"}, "answerable is 'perhaps'; expected true or false"),
        ({"paragraphs": [{**PARAGRAPHS[0], "is_supporting": "some"}]}, "is_supporting is 'some'"),
        ({"paragraphs": {"title": ["a", "b"], "paragraph_text": ["c"]}}, "paragraphs has 2 title, 1 paragraph_text"),
    ],
)
def test_musique_that_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path, "musique", {**MUSIQUE, **change})


# --- one's own -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ('["Mirel Tove", "Tove"]', ("Mirel Tove", "Tove")),
        ("['Mirel Tove', 'Tove']", ("Mirel Tove", "Tove")),
        ("['Mirel Tove' 'Tove']", ("Mirel Tove", "Tove")),  # as a table of numpy's arrays has it
        ("[sic] Tove", ("[sic] Tove",)),
        ("[1, 2]", ("[1, 2]",)),
        ("Mirel Tove", ("Mirel Tove",)),
    ],
)
def test_answers_as_text(tmp_path: Path, answers: str, expected: tuple[str, ...]) -> None:
    (question,) = build(tmp_path, "jsonl", {"id": 7, "question": "Who?", "answers": answers})
    assert (question.question_id, question.answers) == ("7", expected)


def test_ids_that_a_table_made_floats_are_whole_numbers_again(tmp_path: Path) -> None:
    row = {"id": 3.0, "question": "Where?", "answers": ["a"], "positive_ids": [4101.0, 7], "candidate_ids": "[4101.0]"}
    (question,) = build(tmp_path, "jsonl", row)
    assert (question.question_id, question.positive_ids, question.candidate_ids) == ("3", ("4101", "7"), ("4101",))
    with pytest.raises(InputError, match=r"positive_ids: 0.5 is float, expected a string or an integer"):
        build(tmp_path, "jsonl", {**row, "positive_ids": [0.5]})
    with pytest.raises(InputError, match=r":1: id: 0.5 is float"):
        build(tmp_path, "jsonl", {**row, "id": 0.5})


def test_fields_that_are_not_read_are_reported_once_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"Who is {n}?", "answers": ["Tove"], "docs": ["a"], "pos_index": [0]} for n in range(3)]
    rows.append({"question": "Who else?", "answers": ["Tove"], "docs": [], "comment": None})
    file = write(tmp_path / "own.jsonl", *rows)
    assert main(["--input", file, "--format", "jsonl", "--output", str(tmp_path / "out")]) == 0
    [line] = [message for message in caplog.messages if "not read" in message]
    assert line.endswith(
        "own.jsonl: `docs`, `pos_index` are not read by --format jsonl (3 of 4 rows); the rows look like --format clara"
    )


@pytest.mark.parametrize("name", ["positive_id", "positiveIds", "Positive_IDs", "positives_ids"])
def test_near_misses_of_a_name_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    build(tmp_path, "jsonl", {"question": "Who?", "answers": ["Tove"], name: ["d1"]})
    assert any(f"`{name}` is not read by --format jsonl (1 of 1 rows); is `{name}` meant" in m for m in caplog.messages)
    with pytest.raises(InputError, match=r"no field 'answers' or 'answer' .*did you mean 'Answers'"):
        build(tmp_path, "jsonl", {"question": "Who?", "Answers": ["Tove"]})


def test_a_row_of_another_format_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"golden_answers.*; the row looks like --format flashrag"):
        build(tmp_path, "jsonl", {"question": "Who?", "golden_answers": ["Tove"]})
