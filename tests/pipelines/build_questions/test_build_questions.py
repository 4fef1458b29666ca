"""build_questions: published formats, JSONL rows, bad rows, the documents it writes; published samples if present."""

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from clara.data.questions import read_questions
from clara.errors import InputError
from clara.storage.manifest import read_manifest
from pipelines.build_questions.command import main
from tests.helpers import towns
from tests.helpers.question_files import HOTPOT, build


def test_own_rows(tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "answer": "Ada"},
        {
            "id": 7,
            "question": "Where?",
            "answers": ["Arlen", " Arlen ", "there"],
            "positive_ids": ["d1"],
            "candidate_ids": ["d1", "d2"],
        },
    ]
    first, second = build(tmp_path, "jsonl", rows, lines=True)
    assert (first.answers, first.positive_ids, first.split) == (("Ada",), (), "")
    assert (second.question_id, second.answers, second.positive_ids) == ("7", ("Arlen", "there"), ("d1",))
    assert sorted(second.candidate_ids) == ["d1", "d2"]
    assert read_manifest(tmp_path / "out")["counts"]["without a positive"] == 1


def test_rows_of_ones_own_may_name_their_split(tmp_path: Path) -> None:
    rows = [
        {"question": f"Who is {n}?", "answer": "Ada"} | ({"split": s} if s is not None else {})
        for n, s in enumerate(("train", "unseen", "", None))
    ]
    assert [q.split for q in build(tmp_path, "jsonl", rows, lines=True)] == ["train", "unseen", "", ""]
    assert read_manifest(tmp_path / "out")["counts"]["split unseen"] == 1
    assert [q.split for q in build(tmp_path, "jsonl", rows, "--split", "seen", lines=True)] == ["seen"] * 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Who?", "answer": "Ada", "split": "dev"}, r":2: split is 'dev'; expected train, seen or unseen"),
        ({"question": "Who?", "answer": "Ada", "split": 3}, r":2: split is 3"),
        ({"question": "Who?"}, r":2: no field 'answers' or 'answer'"),
        ({"question": "Who?", "answers": []}, r":2: question 'Who\?' has no answer"),
        ({"question": "Who?", "answers": [" "]}, r":2: .* no answer"),
        ({"question": "Who?", "answers": [3]}, r":2: answers is \[3\]"),
        ({"question": " ", "answers": ["a"]}, r":2: question is empty"),
        ({"question": 3, "answers": ["a"]}, r":2: question is 3; expected str"),
        ({"answers": ["a"]}, r":2: no field 'question'"),
        ({"question": "Who was first?", "answers": ["a"]}, r"occurs twice"),
        ({"question": "Who?", "answers": ["a"], "positive_ids": "d1"}, r":2: positive_ids is 'd1'"),
    ],
)
def test_bad_rows_are_named_or_counted(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows = [{"question": "Who was first?", "answers": ["Ada"]}, row]
    with pytest.raises(InputError, match=message):
        build(tmp_path, "jsonl", rows, lines=True)
    assert not (tmp_path / "out").exists()
    assert len(build(tmp_path, "jsonl", rows, "--skip-bad", lines=True)) == 1
    counts = read_manifest(tmp_path / "out")["counts"]
    assert (counts["rows"], counts["questions"], counts["dropped: bad"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("hotpotqa", "{broken", "not JSON"),
        ("hotpotqa", "[broken", "not JSON"),
        ("hotpotqa", "[3]", ":1: 3: expected a JSON object"),
        ("squad", '{"rows": []}', "not SQuAD's JSON"),
        ("nq-open", '{"question": "Who?", "answer": "Ada"}', "answer is 'Ada'; expected list"),
        ("musique", '{"question": "Who?", "answer": "", "answerable": false}', "answerable is false"),
        ("hotpotqa", '{"question": "Who?", "answer": "Ada", "context": [["only a title"]]}', "malformed"),
        ("jsonl", "", "no question in it"),
        ("jsonl", '[{"question": "\\ud800?", "answer": "Ada"}]', "not JSON in UTF-8"),
        (
            "squad",
            '{"data": [{"paragraphs": [{"context": "a", "qas": '
            '[{"id": "1", "question": "\\ud800", "answers": []}]}]}]}',
            "not JSON in UTF-8",
        ),
        (
            "squad",
            '{"id": "1", "title": "", "context": "a", "question": "Who?", "answers": [5]}',
            "5 where an object with 'text' is expected",
        ),
        (
            "musique",
            '{"question": "Who?", "answer": "Ada", "paragraphs": ["a"]}',
            "'a' where an object with 'paragraph_text' is expected",
        ),
        (
            "musique",
            '{"question": "Who?", "answer": "Ada", "answer_aliases": "Adam", "paragraphs": []}',
            "answer_aliases is 'Adam'",
        ),
        ("jsonl", '{"question": "Who?", "answer": "Ada", "positive_ids": 3}', "positive_ids is 3; expected a list"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, form: str, content: str, message: str) -> None:
    (tmp_path / "input").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        main(["--input", str(tmp_path / "input"), "--format", form, "--output", str(tmp_path / "out")])


def test_ids_are_taken_as_a_corpus_has_them(tmp_path: Path) -> None:
    """Whole numbers, nought among them, and white space, which `build_memory` leaves as it is."""
    rows = [
        {
            "id": 0,
            "question": "Who was first?",
            "answers": ["Ada"],
            "positive_ids": [0, 7, " a  b "],
            "candidate_ids": [7, 0, "x"],
        }
    ]
    (question,) = build(tmp_path, "jsonl", rows, lines=True)
    assert (question.question_id, question.positive_ids, set(question.candidate_ids)) == (
        "0",
        ("0", "7", " a  b "),
        {"0", "7", "x"},
    )


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    corpus = str(towns.write(tmp_path / "corpus.jsonl"))
    base = ["--input", corpus, "--format", "cloze", "--output", str(tmp_path / "out")]
    for extra, message in (
        (["--corpus-output", "x"], "brings no documents"),
        (["--held-out-share", "1"], "0 to under 1"),
        (["--pool-size", "1"], "at least 2"),
        (["--train-pools"], "--train-pools without --pool-size"),
        (["--min-words", "70"], "1 to --max-words"),
        (["--max-per-target", "0"], "--max-per-target is 0; expected 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            main([*base, *extra])
    with pytest.raises(InputError, match="no such file"):
        main(["--input", str(tmp_path / "*.nothing"), "--format", "jsonl", "--output", "x"])


def test_cloze_from_a_corpus_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = towns.write(tmp_path / "corpus.jsonl")
    arguments = [
        "--input",
        str(corpus),
        "--format",
        "cloze",
        "--output",
        str(tmp_path / "out"),
        "--pool-size",
        "6",
        "--bm25",
    ]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "BM25 over 35 documents" in printed
    questions = read_questions(tmp_path / "out")
    assert read_manifest(tmp_path / "out")["counts"]["questions"] == len(questions) > 20
    assert main(arguments[:-1]) == 0
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstandard.compress)]
)
def test_compressed_files_are_read_and_cut_ones_named(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    plain = towns.write(tmp_path / "corpus.jsonl")
    packed = tmp_path / f"corpus.jsonl{suffix}"
    packed.write_bytes(compress(plain.read_bytes()))
    for number, file in enumerate((plain, packed)):
        assert main(["--input", str(file), "--format", "cloze", "--output", str(tmp_path / str(number))]) == 0
    assert read_questions(tmp_path / "0") == read_questions(tmp_path / "1")
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(InputError, match=f"corpus.jsonl{suffix}: cannot be read to its end .*copy the file again"):
        main(["--input", str(packed), "--format", "cloze", "--output", str(tmp_path / "cut")])
    published = tmp_path / f"hotpot.json{suffix}"
    published.write_bytes(compress(json.dumps([HOTPOT]).encode()))
    assert main(["--input", str(published), "--format", "hotpotqa", "--output", str(tmp_path / "published")]) == 0
    published.write_bytes(published.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"hotpot.json{suffix}: "):
        main(["--input", str(published), "--format", "hotpotqa", "--output", str(tmp_path / "cut")])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    corpus = towns.write(tmp_path / "corpus.jsonl")
    with pytest.raises(InputError, match=r"corpus\.jsonl/below: cannot be written"):
        main(["--input", str(corpus), "--format", "cloze", "--output", str(corpus / "below")])


def test_a_corpus_whose_articles_do_not_mention_each_other_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_text('{"title": "Arlen", "text": "Arlen is a town by itself."}\n', encoding="utf-8")
    with pytest.raises(InputError, match="no article mentions another"):
        main(["--input", str(tmp_path / "c"), "--format", "cloze", "--output", str(tmp_path / "out")])


def test_pools_are_shuffled_by_the_seed_alone(tmp_path: Path) -> None:
    rows = [
        {
            **HOTPOT,
            "_id": f"q{n}",
            "context": [["Arlen", ["Arlen."]], *([f"Other {i}", [f"Text {i}."]] for i in range(9))],
        }
        for n in range(40)
    ]
    positions = set()
    questions = build(tmp_path, "hotpotqa", rows, lines=True)
    for question in questions:
        positions.add(question.candidate_ids.index(question.positive_ids[0]))
    assert len(positions) > 5
    assert build(tmp_path, "hotpotqa", rows, "--skip-bad", lines=True) == questions
    assert build(tmp_path, "hotpotqa", rows, "--seed", "1", lines=True) != questions
