"""Questions in tables, and passages in the shapes of other programs: the right documents, and no field unreported."""

from pathlib import Path
from typing import Any

import pytest

from clara.data.questions import Question, read_questions
from clara.data.records import document_id
from clara.errors import InputError
from pipelines.build_questions.command import main
from tests.helpers.question_files import HOTPOT, MUSIQUE, write


def build(tmp_path: Path, file: Path | str, *extra: str) -> list[Question]:
    assert main(["--input", str(file), "--output", str(tmp_path / "out"), *extra]) == 0
    return read_questions(tmp_path / "out", answers=False)


TABLES = {
    "own.csv": 'id,question,answers,positive_ids\n7,Who?,"[\'Ada\', \'Ada L.\']","[""d1""]"\n',
    "excel.csv": "\ufeffsep=;\r\nid;question;answers;positive_ids\r\n7;Who?;['Ada', 'Ada L.'];['d1']\r\n",
    "own.tsv": "id\tquestion\tanswers\tpositive_ids\n7\tWho?\t['Ada', 'Ada L.']\t['d1']\n",
    "columns.json": '{"id": [7], "question": ["Who?"], "answers": [["Ada", "Ada L."]], "positive_ids": [["d1"]]}',
    "split.json": '{"columns": ["id", "question", "answers", "positive_ids"], '
    '"data": [[7, "Who?", ["Ada", "Ada L."], ["d1"]]]}',
}


@pytest.mark.parametrize("name", TABLES)
def test_ones_own_questions_in_tables(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TABLES[name], newline="")
    expected = Question("7", "Who?", ("Ada", "Ada L."), ("d1",))
    assert build(tmp_path, tmp_path / name) == [expected]
    assert build(tmp_path, tmp_path / name, "--format", "jsonl") == [expected]


def test_popqa_as_published(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\tsubj\tquestion\tpossible_answers\n42\tG\tWhat?\t"[""pol"", ""politician""]"\n')
    (question,) = build(tmp_path, tmp_path / "a.tsv")
    assert (question.question_id, question.answers) == ("42", ("pol", "politician"))


@pytest.mark.parametrize("name", ["nq-test.qa.csv", "nq-test.tsv"])
def test_dprs_questions_without_a_line_of_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('who is it\t[\'Ada\', "B\'s"]\nwhat is "x"\t"[\'said ""y""\']"\n')
    assert [(q.question, q.answers) for q in build(tmp_path, tmp_path / name)] == [
        ("who is it", ("Ada", "B's")),
        ('what is "x"', ('said "y"',)),
    ]


def test_a_table_without_a_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,prompt\n7,Who?\n")
    with pytest.raises(InputError, match=r"a\.csv:1: .*names no column 'question'; put a first line before the rows"):
        build(tmp_path, tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["answer", "answers", "golden_answers"])
@pytest.mark.parametrize("row", [HOTPOT, MUSIQUE], ids=["hotpotqa", "musique"])
def test_answers_of_multi_hop_questions_under_other_names(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    form = "musique" if row is MUSIQUE else "hotpotqa"
    (expected,) = build(tmp_path, write(tmp_path / "a.jsonl", row), "--format", form)
    other = {key: value for key, value in row.items() if key != "answer"} | {name: ["Tamo"]}
    assert build(tmp_path, write(tmp_path / "b.jsonl", other), "--format", form) == [expected]


@pytest.mark.parametrize(
    "passages",
    [
        [
            {"is_selected": 0, "passage_text": "No.", "url": "u"},
            {"is_selected": 1, "passage_text": "Ada is.", "url": ""},
        ],
        {"is_selected": [0, 1], "passage_text": ["No.", "Ada is."], "url": ["u", ""]},
    ],
)
def test_ms_marco_with_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture, passages: Any) -> None:
    row = {"query_id": 19, "query": "who", "answers": ["Ada."], "passages": passages, "wellFormedAnswers": "[]"}
    (question,) = build(tmp_path, write(tmp_path / "a.jsonl", row))
    assert (question.question_id, question.question, question.answers) == ("19", "who", ("Ada.",))
    assert question.positive_ids == (document_id("", "Ada is."),)
    assert set(question.candidate_ids) == {document_id("", "Ada is."), document_id("", "No.")}
    assert any("`passages.url`" in message for message in caplog.messages)
    none = write(tmp_path / "b.jsonl", {**row, "answers": ["No Answer Present."]})
    with pytest.raises(InputError, match=r"b\.jsonl:1: the answer is 'No Answer Present.'; leave the row out"):
        build(tmp_path, none)


def test_flag_embeddings_lists_of_texts(tmp_path: Path) -> None:
    (question,) = build(tmp_path, write(tmp_path / "a.jsonl", {"query": "who", "pos": ["Ada is."], "neg": ["No."]}))
    assert question.positive_ids == (document_id("", "Ada is."),)
    assert len(question.candidate_ids) == 2


def test_impossible_questions_are_named_or_counted(tmp_path: Path) -> None:
    asked = [
        {"id": "s1", "question": "Where?", "answers": [{"text": "Bo", "answer_start": 1}], "is_impossible": False},
        {"id": "s2", "question": "Why?", "answers": [], "plausible_answers": [], "is_impossible": True},
    ]
    articles = [{"title": "Arlen", "paragraphs": [{"context": "On Bo.", "qas": asked}]}]
    file = write(tmp_path / "a.json", {"version": "v2.0", "data": articles})
    with pytest.raises(InputError, match=r"question s2: is_impossible is true; use SQuAD 1.1, or --skip-bad"):
        build(tmp_path, file, "--format", "squad")
    assert [q.question_id for q in build(tmp_path, file, "--format", "squad", "--skip-bad")] == ["s1"]


def test_one_row_with_a_list_of_objects_is_a_row(tmp_path: Path) -> None:
    row = {"QuestionId": "tc_3", "Question": "Where?", "Answer": {"Value": "Bo"}, "EntityPages": [{"Title": "T"}]}
    (question,) = build(tmp_path, write(tmp_path / "a.jsonl", row), "--format", "triviaqa")
    assert (question.question_id, question.answers) == ("tc_3", ("Bo",))


def test_fields_inside_passages_are_reported_once_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passage = {"id": "11", "title": "T", "text": "Ada is.", "has_answers": True, "score": 81.2}
    rows = [{"question": f"Who is {n}?", "answers": ["Ada"], "ctxs": [passage, passage]} for n in range(3)]
    build(tmp_path, write(tmp_path / "a.jsonl", *rows), "--format", "fid")
    [line] = [message for message in caplog.messages if "not read" in message]
    assert line.endswith(
        "a.jsonl: `ctxs.has_answers`, `ctxs.score` are not read by --format fid (3 of 3 rows); "
        "is `ctxs.has_answers` meant to be `has_answer`?"
    )


@pytest.mark.parametrize(
    ("form", "row", "shown"),
    [
        ("clara", {"question": "Who?", "answer": "Ada", "docs": [{"text": "Ada is.", "url": "u"}]}, "`docs.url`"),
        ("dpr", {"question": "Who?", "positive_ctxs": [{"text": "Ada is.", "score": 1}]}, "`positive_ctxs.score`"),
        ("hotpotqa", {**HOTPOT, "context": [{"title": "Arlen", "sentences": ["It."], "url": "u"}]}, "`context.url`"),
        ("hotpotqa", {**HOTPOT, "context": {"title": ["A"], "sentences": [["It."]], "url": ["u"]}}, "`context.url`"),
        ("musique", {**MUSIQUE, "paragraphs": [{**MUSIQUE["paragraphs"][1], "url": "u"}]}, "`paragraphs.url`"),
    ],
)
def test_of_every_format_with_passages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str, row: dict[str, Any], shown: str
) -> None:
    build(tmp_path, write(tmp_path / "a.jsonl", row), "--format", form)
    assert any(f"{shown} is not read by --format {form} (1 of 1 rows)" in message for message in caplog.messages)


def test_a_name_that_is_read_is_no_near_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, write(tmp_path / "a.jsonl", {**HOTPOT, "answer_id": "Q3"}), "--format", "2wiki")
    [line] = [message for message in caplog.messages if "not read" in message]
    assert line.endswith("`answer_id` is not read by --format 2wiki (1 of 1 rows)")
