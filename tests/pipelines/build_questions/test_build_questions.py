"""build_questions: published formats, JSONL rows, bad rows, the documents it writes; published samples if present."""

import bz2
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from clara.data.questions import Question, read_questions
from clara.data.records import document_id
from clara.errors import InputError
from clara.storage.manifest import read_manifest
from pipelines.build_questions.command import main
from tests.helpers import towns

SAMPLES = Path(__file__).parents[4] / "shared" / "data"

HOTPOT = {
    "_id": "q1",
    "question": " Which  river? ",
    "answer": "Tamo",
    "supporting_facts": [["Arlen", 0], ["Arlen", 1]],
    "context": [
        ["Arlen", ["Arlen sits on the Tamo.", " It is small."]],
        ["Brask", ["Brask is a town."]],
        ["Empty", [""]],
    ],
}
MUSIQUE = {
    "id": "q1",
    "question": "Which river?",
    "answer": "Tamo",
    "answer_aliases": ["the Tamo", "Tamo"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Brask", "paragraph_text": "Brask is a town.", "is_supporting": False},
        {"idx": 1, "title": "Arlen", "paragraph_text": "Arlen sits on the Tamo. It is small.", "is_supporting": True},
    ],
}
SQUAD = {
    "data": [
        {
            "title": "Arlen",
            "paragraphs": [
                {
                    "context": "Arlen sits on the Tamo. It is small.",
                    "qas": [
                        {"id": "q1", "question": "Which river?", "answers": [{"text": "Tamo", "answer_start": 18}] * 2}
                    ],
                }
            ],
        }
    ]
}
ARLEN, BRASK = document_id("Arlen", "Arlen sits on the Tamo. It is small."), document_id("Brask", "Brask is a town.")


def build(tmp_path: Path, form: str, content: Any, *extra: str, lines: bool = False) -> list[Question]:
    file = tmp_path / "input"
    rows = content if lines else [content]
    file.write_text(
        "".join(json.dumps(row) + "\n" for row in rows) if lines or form != "list" else json.dumps(content),
        encoding="utf-8",
    )
    assert main(["--input", str(file), "--format", form, "--output", str(tmp_path / "out"), *extra]) == 0
    return read_questions(tmp_path / "out")


def documents(path: Path) -> dict[str, dict[str, str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize(
    ("form", "row", "answers", "has_pool"),
    [
        ("hotpotqa", HOTPOT, ("Tamo",), True),
        ("2wiki", HOTPOT, ("Tamo",), True),
        ("musique", MUSIQUE, ("Tamo", "the Tamo"), True),
        ("squad", SQUAD, ("Tamo",), False),
    ],
)
def test_formats_with_documents(
    tmp_path: Path, form: str, row: Mapping[str, Any], answers: tuple[str, ...], has_pool: bool
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    (question,) = build(tmp_path, form, row, "--corpus-output", str(corpus), "--split", "train")
    assert (question.question_id, question.question, question.answers, question.split) == (
        "q1",
        "Which river?",
        answers,
        "train",
    )
    assert question.positive_ids == (ARLEN,)
    assert set(question.candidate_ids) == ({ARLEN, BRASK} if has_pool else set())
    written = documents(corpus)
    assert written.keys() == ({ARLEN, BRASK} if has_pool else {ARLEN})
    assert written[ARLEN] == {"id": ARLEN, "title": "Arlen", "text": "Arlen sits on the Tamo. It is small."}


def test_columns_as_dataset_hubs_make_them_are_the_same(tmp_path: Path) -> None:
    columns = {
        **HOTPOT,
        "context": {"title": [t for t, _ in HOTPOT["context"]], "sentences": [s for _, s in HOTPOT["context"]]},
        "supporting_facts": {"title": ["Arlen", "Arlen"], "sent_id": [0, 1]},
    }
    assert build(tmp_path, "hotpotqa", columns) == build(tmp_path, "hotpotqa", HOTPOT)


def hotpot(kind: str, question: str, titles: list[str]) -> dict[str, Any]:
    context = [["Brask", ["Brask is a town."]], *([title, [f"About {title}."]] for title in reversed(titles))]
    return {
        "question": question,
        "answer": "x",
        "type": kind,
        "supporting_facts": [[t, 0] for t in titles],
        "context": context,
    }


def hops_by_title(question: Question, titles: list[str]) -> dict[str, int]:
    names = {document_id(t, f"About {t}."): t for t in titles}
    return {names[d]: hop for d, hop in zip(question.positive_ids, question.positive_hops, strict=False)}


@pytest.mark.parametrize(
    ("form", "kind", "question", "titles", "hops"),
    [
        ("2wiki", "compositional", "Who?", ["Ada", "Bo"], [1, 2]),
        ("2wiki", "inference", "Who?", ["Ada", "Bo"], [1, 2]),
        ("2wiki", "bridge_comparison", "Which?", ["F", "G", "Dan", "Eve"], [1, 1, 2, 2]),
        ("2wiki", "compositional", "Who?", ["Ada", "Bo", "Cy"], []),  # not the chain that this type has
        ("hotpotqa", "comparison", "Which?", ["Ada", "Bo"], [1, 1]),
        (
            "hotpotqa",
            "bridge",
            "Where was Bo born?",
            ["Ada", "Bo (singer)"],
            [2, 1],
        ),  # the named one, though the link goes the other way
        ("hotpotqa", "bridge", "Did Ada meet Bo?", ["Ada", "Bo"], []),
        ("hotpotqa", "bridge", "Who went to Bologna?", ["Ada", "Bo"], []),
        ("hotpotqa", "", "Who is Ada?", ["Ada", "Bo"], []),
    ],
)
def test_hops_of_supporting_facts(
    tmp_path: Path, form: str, kind: str, question: str, titles: list[str], hops: list[int]
) -> None:
    (built,) = build(tmp_path, form, hotpot(kind, question, titles))
    assert len(built.positive_ids) == len(titles)
    assert hops_by_title(built, titles) == dict(zip(titles, hops, strict=False))


def musique(*steps: tuple[str, int]) -> dict[str, Any]:
    paragraphs = [
        {"idx": i, "title": t, "paragraph_text": f"About {t}.", "is_supporting": True} for i, t in enumerate("ABCD")
    ]
    decomposition = [{"question": question, "paragraph_support_idx": where} for question, where in steps]
    return {"question": "Who?", "answer": "x", "paragraphs": paragraphs, "question_decomposition": decomposition}


def test_hops_of_a_decomposition(tmp_path: Path) -> None:
    (built,) = build(
        tmp_path, "musique", musique(("first?", 2), ("other first?", 0), ("#1 >> child", 3), ("#2 and #3?", 1))
    )
    assert hops_by_title(built, list("ABCD")) == {"A": 1, "B": 3, "C": 1, "D": 2}
    with pytest.raises(InputError, match=r"step 1 is .*#2.*paragraph_support_idx"):
        build(tmp_path, "musique", musique(("#2 >> child", 0), ("first?", 1)))


def test_pools_are_shuffled_and_their_white_space_is_one(tmp_path: Path) -> None:
    """Published data may have the right ones first, with other numbers of spaces, and again among the wrong ones."""
    rows, corpus = [], tmp_path / "corpus.jsonl"
    for number in range(60):
        wrong = [[f"W{number} {i}", [f"Wrong  \n {i}."]] for i in range(9)]
        again = [f" Right{number} ", ["Right\u00a0 text. "]]
        context = [[f"Right{number}", ["Right text."]], *wrong, again]
        rows.append(
            {
                "question": f"Who {number}?",
                "answer": "x",
                "supporting_facts": [[f"Right{number}", 0]],
                "context": context,
            }
        )
    questions = build(tmp_path, "hotpotqa", rows, "--corpus-output", str(corpus), lines=True)
    for document in documents(corpus).values():
        assert document["text"] == " ".join(document["text"].split())
        assert document["title"] == document["title"].strip()
    places = []
    for question in questions:
        assert len(question.candidate_ids) == 10  # the right one once
        (right,) = question.positive_ids
        places.append(question.candidate_ids.index(right))
    # Uniform places have mean 4.5 and standard error 2.9 / sqrt(60).
    assert abs(sum(places) / 60 - 4.5) < 3 * 2.9 / 60**0.5
    assert set(places) == set(range(10))


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
        ({"question": "Who was first?", "answers": ["a"]}, r"stands twice"),
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


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_tables_as_dataset_hubs_publish_them(tmp_path: Path, kind: str) -> None:
    """One row a question, columns in place of lists of objects; the same questions as from the published files."""
    given = SQUAD["data"][0]["paragraphs"][0]
    asked = given["qas"][0]
    squad = {
        "id": asked["id"],
        "title": SQUAD["data"][0]["title"],
        "context": given["context"],
        "question": asked["question"],
        "answers": {"text": [a["text"] for a in asked["answers"]], "answer_start": [0] * len(asked["answers"])},
    }
    facts, context = HOTPOT["supporting_facts"], HOTPOT["context"]
    hotpot = HOTPOT | {
        "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [n for _, n in facts]},
        "context": {"title": [t for t, _ in context], "sentences": [s for _, s in context]},
    }
    for form, row, published in (("squad", squad, SQUAD), ("hotpotqa", hotpot, HOTPOT)):
        file = tmp_path / f"{form}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist([row]), file)
        else:
            file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        assert main(["--input", str(file), "--format", form, "--output", str(tmp_path / form)]) == 0
        (tmp_path / f"{form}-published").mkdir()
        assert read_questions(tmp_path / form) == build(tmp_path / f"{form}-published", form, published)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    corpus = str(towns.write(tmp_path / "corpus.jsonl"))
    base = ["--input", corpus, "--format", "cloze", "--output", str(tmp_path / "out")]
    for extra, message in (
        (["--corpus-output", "x"], "brings no documents"),
        (["--held-out-share", "1"], "0 to under 1"),
        (["--pool-size", "1"], "at least 2"),
        (["--train-pools"], "--train-pools without --pool-size"),
        (["--min-words", "70"], "1 to --max-words"),
        (["--max-per-target", "0"], "at least 1"),
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
    with pytest.raises(InputError, match=f"corpus.jsonl{suffix}: cannot be read to its end .*copy the file anew"):
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


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the published samples are not here (../shared/data)")
@pytest.mark.parametrize(
    ("form", "file", "num_questions", "pool"),
    [
        ("hotpotqa", "hotpotqa/hotpotqa_dev_sample.json", 60, 10),
        ("2wiki", "2wiki/2wiki_dev_sample.json", 60, 10),
        ("musique", "musique/musique_dev_sample.jsonl", 60, 20),
        ("squad", "squad/xquad.en.json", 1190, 0),
        ("nq-open", "nq_open/NQ-open.dev.jsonl", 3610, 0),
    ],
)
def test_published_samples(tmp_path: Path, form: str, file: str, num_questions: int, pool: int) -> None:
    arguments = ["--input", str(SAMPLES / file), "--format", form, "--output", str(tmp_path / "out")]
    if form != "nq-open":
        arguments += ["--corpus-output", str(tmp_path / "corpus.jsonl")]
    assert main(arguments) == 0
    questions = read_questions(tmp_path / "out")
    assert len(questions) == num_questions == len({q.question_id for q in questions})
    assert max(len(q.candidate_ids) for q in questions) == pool
    if form != "nq-open":
        known = documents(tmp_path / "corpus.jsonl")
        assert all(q.positive_ids for q in questions)
        assert {d for q in questions for d in (*q.positive_ids, *q.candidate_ids)} <= known.keys()
    if pool:
        assert all(set(q.positive_ids) <= set(q.candidate_ids) for q in questions)
    if form == "squad":
        assert all(q.answers[0] in known[q.positive_ids[0]]["text"] for q in questions)
