"""Published question formats: which documents, hops and pools the questions have."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara.data.questions import Question, read_questions
from clara.data.records import document_id
from clara.errors import InputError
from pipelines.build_questions.command import main
from tests.helpers.question_files import ARLEN, BRASK, HOTPOT, MUSIQUE, SQUAD, build

SAMPLES = Path(__file__).parents[4] / "shared" / "data"


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
