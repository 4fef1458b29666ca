"""Published samples are split by document: no training on what a held-out question needs."""

import json
from pathlib import Path

import pytest

from clara.data.examples import read_examples
from clara.data.questions import Question, read_questions
from clara.errors import InputError
from infra.evidence import data as evidence_data
from infra.evidence.data import SPLITS, Sizes, handed_on, make

SMALL = Sizes(
    train_2wiki=8,
    train_scp=4,
    scp_each=2,
    held_out_2wiki=2,
    held_out_hotpotqa=2,
    held_out_musique=2,
    held_out_scp=2,
    pool_size=3,
    scp_share=0.3,
)
NAMES = [f"Town {a}{b}" for a in "ABCDEFGH" for b in "klmnop"]


def paragraph(place: int) -> tuple[str, str]:
    return NAMES[
        place
    ], f"{NAMES[place]} sits on a river and was founded in {1200 + place}. Its mayor is {NAMES[place][5:]}us."


def multi_hop(number: int, *, first: int, answer: str = "") -> dict[str, object]:
    """A question whose pool is four paragraphs from `first` on, the first two of which support it."""
    pool = [paragraph(first + i) for i in range(4)]
    return {
        "_id": f"q{number}-{first}",
        "type": "compositional",
        "question": f"Who is mayor of the town beyond {pool[0][0]}?",
        "answer": answer or f"{pool[1][0][5:]}us",
        "context": [[title, [text]] for title, text in pool],
        "supporting_facts": [[pool[0][0], 0], [pool[1][0], 0]],
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the four sets; question 0's pool holds a paragraph that a held-out question needs; 1 is answered yes."""
    data = tmp_path_factory.mktemp("published")
    train = [
        multi_hop(0, first=38),
        multi_hop(1, first=0, answer="yes"),
        *(multi_hop(n, first=4 * (n % 5)) for n in range(2, 12)),
    ]
    musique = [
        {
            "id": f"m{n}",
            "question": f"When was {NAMES[44]} founded, number {n}?",
            "answer": "1244",
            "answerable": True,
            "paragraphs": [
                {
                    "idx": i,
                    "title": paragraph(44 + i)[0],
                    "paragraph_text": paragraph(44 + i)[1],
                    "is_supporting": i == 0,
                }
                for i in range(4)
            ],
        }
        for n in range(3)
    ]
    scp = [
        {
            "data_type": "qa",
            "question": [f"When was place {n} built?", f"Who built place {n}?"],
            "answers": [str(1900 + n), f"Builder {n}"],
            "docs": [f"This a document about Place {n}. \n Place {n} was built in {1900 + n} by Builder {n}."],
        }
        for n in range(20)
    ]
    # The title of a paragraph that a held-out question needs.
    scp.append(
        {
            "data_type": "qa",
            "question": ["When?"],
            "answers": ["1240"],
            "docs": [f"This a document about {NAMES[40]}. \n It was founded long ago."],
        }
    )
    for name, rows in (
        ("2wiki/2wiki_train_sample.json", train),
        ("2wiki/2wiki_dev_sample.json", [multi_hop(n, first=40) for n in range(3)]),
        ("hotpotqa/hotpotqa_dev_sample.json", [multi_hop(n, first=40) for n in range(3)]),
    ):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text(json.dumps(rows), encoding="utf-8")
    for name, lines in (("musique/musique_dev_sample.jsonl", musique), ("scp/scp_sample.jsonl", scp)):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return data


def test_no_training_pool_and_no_example_holds_a_held_out_document(published: Path) -> None:
    made = make(published, SMALL)
    held, train = [q for q in made.questions if q.split != "train"], [q for q in made.questions if q.split == "train"]
    assert {q.split for q in held} == set(SPLITS)
    needed = {name for q in held for name in q.positive_ids}
    assert train
    assert not needed & {name for q in train for name in (*q.candidate_ids, *q.positive_ids)}
    assert not needed & {e.document_id for e in made.examples}
    assert not {made.documents[name].title for name in needed if name in made.documents} & {
        e.title for e in made.examples
    }
    assert made.counts["2wiki: dropped, a held-out document in the pool"] == 1
    assert made.counts["2wiki: dropped, answered by yes or no"] == 1
    assert made.counts["scp: dropped, title of a held-out document"] == 1


def test_every_pool_holds_its_positives_and_every_document_is_in_the_corpus(published: Path) -> None:
    made = make(published, SMALL)
    for question in made.questions:
        assert set(question.positive_ids) <= set(question.candidate_ids) <= made.documents.keys()
        assert len(set(question.candidate_ids)) == len(question.candidate_ids)
    scp = [q for q in made.questions if q.question_id.startswith("scp-") and q.split == "train"]
    assert len(scp) == 8
    assert {len(q.candidate_ids) for q in scp} == {3}


def test_a_larger_size_only_adds(published: Path) -> None:
    few = {
        q.question_id
        for q in make(published, SMALL).questions
        if q.split == "train" and not q.question_id.startswith("scp")
    }
    many = {q.question_id for q in make(published, Sizes(scp_share=0.3)).questions if q.split == "train"}
    assert few < many


def test_answers_are_handed_on_and_nobody_keeps_theirs() -> None:
    asked = [Question(str(n), "Who?", (f"answer {n}",), split="train" if n % 2 else "2wiki") for n in range(10)]
    handed = handed_on(asked, 0)
    for before, after in zip(asked, handed, strict=True):
        assert (before.answers != after.answers) == (before.split == "train")
    assert sorted(q.answers for q in handed) == sorted(q.answers for q in asked)


def test_command_writes_artefacts_once(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--data",
        str(published),
        "--output",
        str(tmp_path / "made"),
        "--train-2wiki",
        "4",
        "--train-scp",
        "2",
        "--scp-share",
        "0.3",
    ]
    assert evidence_data.main(command) == 0
    questions, shuffled = (read_questions(tmp_path / "made" / name, "train") for name in ("questions", "shuffled"))
    assert [q.question_id for q in questions] == [q.question_id for q in shuffled]
    assert [q.answers for q in questions] != [q.answers for q in shuffled]
    assert {e.kind for e in read_examples(tmp_path / "made" / "examples")} == {"qa", "autoencode"}
    corpus = {json.loads(line)["id"] for line in (tmp_path / "made" / "corpus.jsonl").read_text().splitlines()}
    reading = {json.loads(line)["id"] for line in (tmp_path / "made" / "reading.jsonl").read_text().splitlines()}
    assert reading < corpus
    capsys.readouterr()
    assert evidence_data.main(command) == 0
    assert "up to date" in capsys.readouterr().out
    with pytest.raises(InputError, match="--pool-size 1; expected 2 or more"):
        evidence_data.main([*command, "--pool-size", "1"])
