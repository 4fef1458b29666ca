"""build_examples: cloze pairs that are true of their document, nothing held out, published pairs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clara.data.examples import FILE, Example, read_examples
from clara.data.records import Document
from clara.errors import InputError
from clara.storage.folders import sha256_file
from clara.storage.manifest import read_manifest
from pipelines.build_examples import ABOUT, Settings, corpus_examples, main, spans
from pipelines.corpus.bridges import ClozeSettings, cloze_questions
from pipelines.corpus.mentions import MASK, Names, is_held_out
from tests.helpers import towns

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "scp" / "scp_sample.jsonl"
ROWS = [(d, f"What {d.title} is") for d in towns.documents()]


def masked(sentence: str, title: str = "", others: Names | None = None) -> list[str]:
    return [sentence[start:end] for start, end in spans(sentence, title, others or Names([]))]


@pytest.mark.parametrize(
    ("sentence", "title", "expected"),
    [
        ("In 1969 the Saturn V rocket flew.", "", ["1969", "Saturn V"]),
        ("The Bank of England and 12,500 people, 3.5 of them.", "", ["Bank of England", "12,500", "3.5"]),
        ("It was signed on 4 July 1776 in the hall.", "", ["4 July 1776"]),
        ("Temperatures of −116 and 1.2±0.02 degrees.", "", ["1.2"]),
        ("A sock is a garment.", "Sock", ["sock"]),
        ("A sock beside a Sock.", "Sock", []),
        ("Nothing remarkable happened.", "", ["remarkable"]),
        ("It is so.", "", []),
        ("The Treaty of the Pyrenees and Peace of Westphalia.", "", ["Treaty of the Pyrenees", "Peace of Westphalia"]),
        ("New York and New York again, says John Smith.", "", ["John Smith"]),
    ],
)
def test_spans(sentence: str, title: str, expected: list[str]) -> None:
    assert masked(sentence, title) == expected


def test_another_articles_name_is_never_masked() -> None:
    others = Names([Document("n", "Saturn V", "Saturn V flew."), Document("f", "Florida", "Florida is hot.")])
    assert masked("The Saturn V rocket left Florida in 1969.", "", others) == ["1969"]


def test_pairs_are_true_of_the_document() -> None:
    examples, counts = corpus_examples(ROWS, Settings())
    assert counts["documents"] == 35
    assert [e.kind for e in examples[:2]] == ["autoencode", "cloze"]
    for example in examples:
        assert len(example.questions) <= 6
        for question, answer in zip(example.questions, example.answers, strict=True):
            if question == ABOUT:
                assert answer == example.title
            elif question == f"What is {example.title}?":
                assert answer == f"What {example.title} is"
            else:
                assert question.replace(MASK, answer) in example.text
    towns_only = [e for e in examples if e.kind == "cloze" and e.document_id.startswith("town")]
    assert all(len(e.questions) >= 4 for e in towns_only)


def test_nothing_held_out_is_read() -> None:
    share = 0.25
    examples, counts = corpus_examples(ROWS, Settings(held_out_share=share))
    held_out = [d for d, _ in ROWS if is_held_out(d.id, share)]
    assert counts["dropped: held out"] == len(held_out) > 3
    assert not {d.id for d in held_out} & {e.document_id for e in examples}
    read = " ".join(text for e in examples for text in (e.document, *e.questions, *e.answers))
    assert not any(re.search(rf"\b{d.title}\b", read) for d in held_out)
    questions, _ = cloze_questions([d for d, _ in ROWS], ClozeSettings(held_out_share=share, max_per_target=99))
    asked = [q.question.replace(MASK, q.answers[0]) for q in questions if q.split in ("seen", "unseen")]
    assert len(asked) > 10
    assert not any(sentence in read for sentence in asked)


def test_training_questions_are_not_given_away() -> None:
    examples, _ = corpus_examples(ROWS, Settings())
    pairs = {pair for e in examples for pair in zip(e.questions, e.answers, strict=True)}
    questions, _ = cloze_questions([d for d, _ in ROWS], ClozeSettings(held_out_share=0, max_per_target=99))
    assert not pairs & {(q.question, q.answers[0]) for q in questions}


def test_a_document_gives_the_same_pairs_in_any_corpus_order() -> None:
    backwards, _ = corpus_examples(ROWS[::-1], Settings())
    examples, _ = corpus_examples(ROWS, Settings())
    assert {e.example_id: e for e in backwards} == {e.example_id: e for e in examples}
    assert corpus_examples(ROWS, Settings(seed=1))[0] != examples


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = towns.write(tmp_path / "corpus.jsonl")
    arguments = [
        "--input",
        str(corpus),
        "--output",
        str(tmp_path / "out"),
        "--exclude-held-out",
        "--kinds",
        "cloze",
        "--pairs",
        "3",
    ]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    examples = read_examples(tmp_path / "out")
    assert {e.kind for e in examples} == {"cloze"}
    assert max(len(e.questions) for e in examples) == 3
    counts = read_manifest(tmp_path / "out")["counts"]
    assert counts["documents"] == counts["examples"] + counts["dropped: held out"]
    before = sha256_file(tmp_path / "out" / FILE)
    assert main(arguments) == 0
    assert "up to date" in capsys.readouterr().out
    assert main([*arguments[:3], str(tmp_path / "again"), *arguments[4:]]) == 0
    assert sha256_file(tmp_path / "again" / FILE) == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--kinds", "qa"], "expected autoencode, cloze"),
        (["--pairs", "0"], "--pairs is 0; expected 1 or more"),
        (["--held-out-share", "2"], "share"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, extra: list[str], message: str) -> None:
    corpus = towns.write(tmp_path / "corpus.jsonl")
    with pytest.raises(InputError, match=message):
        main(["--input", str(corpus), "--output", str(tmp_path / "out"), *extra])


def scp(tmp_path: Path, *rows: dict[str, Any]) -> list[Example]:
    file = tmp_path / "scp.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["--input", str(file), "--format", "scp", "--output", str(tmp_path / "out")]) == 0
    return read_examples(tmp_path / "out")


def test_published_pairs(tmp_path: Path) -> None:
    row = {
        "data_type": "qa",
        "question": ["Which river?"],
        "answers": ["Tamo"],
        "docs": ["This a document about St. Arlen. \n It sits on the Tamo."],
    }
    other = {
        "data_type": "paraphrase",
        "question": [],
        "answers": ["On the Tamo sits a town."],
        "docs": ["A town on the Tamo."],
    }
    first, second = scp(tmp_path, row, other, row)
    assert (first.kind, first.title, first.text) == ("qa", "St. Arlen", "It sits on the Tamo.")
    assert (first.questions, first.answers) == (("Which river?",), ("Tamo",))
    assert (second.kind, second.title, second.text, second.answers) == (
        "paraphrase",
        "",
        "A town on the Tamo.",
        ("On the Tamo sits a town.",),
    )
    counts = read_manifest(tmp_path / "out")["counts"]
    assert (counts["rows"], counts["examples"], counts["dropped: repeated"]) == (3, 2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_type": "poem"}, ":1: data_type 'poem'"),
        ({"docs": ["a", "b"]}, ":1: 2 docs"),
        ({"docs": "a"}, ":1: docs is 'a'"),
        ({"answers": []}, ":1: .* 1 questions and 0 answers"),
    ],
)
def test_bad_published_pairs_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"data_type": "qa", "question": ["Which river?"], "answers": ["Tamo"], "docs": ["A town on the Tamo."]}
    with pytest.raises(InputError, match=message):
        scp(tmp_path, row | change)


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the published sample is not here (../shared/data)")
def test_the_published_sample(tmp_path: Path) -> None:
    assert main(["--input", str(SAMPLE), "--format", "scp", "--output", str(tmp_path / "out")]) == 0
    examples = read_examples(tmp_path / "out")
    assert len(examples) == 900
    assert sum(bool(e.title) for e in examples) > 890
    assert sum(len(e.questions) for e in examples) > 5000
