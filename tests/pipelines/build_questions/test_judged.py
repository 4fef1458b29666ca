"""Queries with judgements apart: BEIR, MS MARCO, ColBERT."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara.data.questions import Question, read_questions
from clara.errors import InputError
from clara.storage.manifest import read_manifest
from pipelines.build_questions.command import main

QUERIES = [
    {"_id": "Q-1", "text": "When are windmill sails oiled?", "metadata": {}},
    {"_id": "Q-2", "text": "What falls before storms?", "metadata": {}},
    {"_id": "Q-3", "text": "Who asks this?", "metadata": {}},
]
BEIR = "query-id\tcorpus-id\tscore\nQ-1\tB-1\t2\nQ-1\tB-4\t0\nQ-2\tB-3\t1\nQ-2\tB-2\t3\n"
RIGHT = {"Q-1": (("B-1", 2.0),), "Q-2": (("B-3", 1.0), ("B-2", 3.0))}


def queries(folder: Path) -> str:
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUERIES), encoding="utf-8")
    return str(path)


def build(tmp_path: Path, file: str, qrels: Path, *extra: str) -> list[Question]:
    output = str(tmp_path / "out")
    assert main(["--input", file, "--qrels", str(qrels), "--output", output, *extra]) == 0
    return read_questions(output, answers=False)


def right(questions: list[Question]) -> dict[str, tuple[tuple[str, float], ...]]:
    return {q.question_id: tuple(zip(q.positive_ids, q.positive_grades, strict=True)) for q in questions}


def test_positives_are_those_judged_above_nought(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text(BEIR)
    questions = build(tmp_path, queries(tmp_path), tmp_path / "test.tsv")
    assert right(questions) == RIGHT
    assert questions[0].question == "When are windmill sails oiled?"
    assert not questions[0].answers
    manifest = read_manifest(tmp_path / "out")
    assert manifest["made_by"]["recipe"]["format"] == "beir"
    counts = manifest["counts"]
    assert (counts["rows"], counts["questions"], counts["dropped: not judged"]) == (3, 2, 1)


@pytest.mark.parametrize(
    "content",
    [
        "Q-1 0 B-1 2\nQ-1 0 B-4 0\nQ-2 0 B-3 1\nQ-2 0 B-2 3\n",  # TREC's
        "Q-1\t0\tB-1\t2\r\nQ-1\t0\tB-4\t0\r\nQ-2\t0\tB-3\t1\r\n\r\nQ-2\t0\tB-2\t3\r\n",
        "Q-1\tB-1\t2\nQ-1\tB-4\t-1\nQ-2\tB-3\t1.0\nQ-2\tB-2\t3\n",
        'query-id,corpus-id,score\nQ-1,B-1,2\nQ-2,B-3,1\n"Q-2","B-2","3"\n',
        '"query-id"\t"corpus-id"\t"score"\n"Q-1"\t"B-1"\t"2"\nQ-2\tB-3\t1\nQ-2\tB-2\t3\n',
        "QueryID\titer\tdocno\tjudgment\nQ-1\tQ0\tB-1\t2\nQ-2\tQ0\tB-3\t1\nQ-2\tQ0\tB-2\t3\n",
        "corpus-id\tscore\tquery-id\nB-1\t2\tQ-1\nB-3\t1\tQ-2\nB-2\t3\tQ-2\nB-2\t3\tQ-2\n",
    ],
)
def test_judgements_as_text(tmp_path: Path, content: str) -> None:
    for data in (b"\xef\xbb\xbf" + content.encode(), content.encode("utf-16")):
        (tmp_path / "qrels.txt").write_bytes(data)
        assert right(build(tmp_path, queries(tmp_path), tmp_path / "qrels.txt")) == RIGHT


def test_judgements_as_pytrec_eval_takes_them(tmp_path: Path) -> None:
    (tmp_path / "qrels.json").write_text('{"Q-1": {"B-1": 2, "B-4": 0}, "Q-2": {"B-3": 1, "B-2": 3}}')
    assert right(build(tmp_path, queries(tmp_path), tmp_path / "qrels.json")) == RIGHT


def test_judgements_as_tables_and_compressed(tmp_path: Path) -> None:
    names = ("query-id", "corpus-id", "score")
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in BEIR.splitlines()[1:]]
    (tmp_path / "qrels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "qrels.parquet")
    (tmp_path / "qrels.tsv.gz").write_bytes(gzip.compress(BEIR.encode()))
    for name in ("qrels.jsonl", "qrels.parquet", "qrels.tsv.gz"):
        assert right(build(tmp_path, queries(tmp_path), tmp_path / name)) == RIGHT


def test_queries_of_ms_marco_and_colbert(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_text('1048585\twhat is paula deen\'s brother\n2\t"quoted" query\n')
    (tmp_path / "qrels.tsv").write_text("1048585\t0\t7187158\t1\n2\t0\t0\t1\n")
    questions = build(tmp_path, str(tmp_path / "queries.tsv"), tmp_path / "qrels.tsv")
    assert right(questions) == {"1048585": (("7187158", 1.0),), "2": (("0", 1.0),)}
    assert questions[1].question == '"quoted" query'
    assert read_manifest(tmp_path / "out")["made_by"]["recipe"]["format"] == "msmarco"
    (tmp_path / "queries.tsv").write_text("qid\tquery\n1048585\twho\n2\twhat\n")
    assert len(build(tmp_path, str(tmp_path / "queries.tsv"), tmp_path / "qrels.tsv", "--format", "colbert")) == 2


def test_ids_that_a_table_made_floats(tmp_path: Path) -> None:
    rows = [{"query-id": 1.0, "corpus-id": 4101.0, "score": 1.0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "qrels.parquet")
    (tmp_path / "queries.jsonl").write_text('{"_id": 1, "text": "what"}\n')
    assert right(build(tmp_path, str(tmp_path / "queries.jsonl"), tmp_path / "qrels.parquet")) == {
        "1": (("4101", 1.0),)
    }


def test_answers_of_judged_queries_are_kept(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text(BEIR)
    (tmp_path / "queries.jsonl").write_text('{"_id": "Q-1", "text": "When?", "answers": ["in spring"]}\n')
    (question,) = build(tmp_path, str(tmp_path / "queries.jsonl"), tmp_path / "test.tsv", "--format", "beir")
    assert question.answers == ("in spring",)


def test_judged_queries_that_are_not_there_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "test.tsv").write_text(BEIR + "Q-9\tB-1\t1\n")
    build(tmp_path, queries(tmp_path), tmp_path / "test.tsv")
    assert "1 judged queries that are not in the input, 'Q-9' first" in caplog.messages
    assert read_manifest(tmp_path / "out")["counts"]["judged queries that are not in the input"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Q-1\tB-1\n", "no question in it"),  # of other queries only
        ("Q-1\n", r":1: 1 columns, 'Q-1'; expected query, document and grade"),
        ("Q-1\tB-1\thigh\n", r":1: query 'Q-1', document 'B-1', grade 'high': could not convert"),
        ("Q-1\t\t1\n", r":1: query 'Q-1', document '', grade '1'; expected two ids and a number"),
        ("Q-1\tB-1\tnan\n", r"expected two ids and a number"),
        ("Q-1\tB-1\t1\nQ-1\tB-1\t2\n", r":2: document 'B-1' of query 'Q-1' has the grade 2, and 1 before"),
        ("query-id\tdocument\tscore\nQ-1\tB-1\t1\n", r":1: columns are query-id, document, score; expected"),
        ("", "no judgement in it"),
    ],
)
def test_bad_judgements_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "qrels.tsv").write_text(content)
    file = tmp_path / "queries.jsonl"
    file.write_text('{"_id": "Q-0", "text": "what"}\n')
    with pytest.raises(InputError, match=message):
        build(tmp_path, str(file), tmp_path / "qrels.tsv")


def test_without_judgements_it_is_said_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(BEIR)
    command = ["--input", queries(tmp_path), "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"no judgements in it; give them with --qrels FILE, one of .*qrels/test.tsv"):
        main([*command, "--format", "beir"])
    for form in ("jsonl", "cloze"):
        with pytest.raises(InputError, match="--qrels"):
            main([*command, "--format", form, "--qrels", str(tmp_path / "qrels" / "test.tsv")])
