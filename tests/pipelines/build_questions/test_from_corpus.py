"""Questions from a corpus alone, as a command: cloze, natural, both."""

import json
from collections import Counter
from pathlib import Path

import pytest

from clara.data.questions import Question, read_questions
from clara.errors import InputError
from clara.storage.manifest import read_manifest
from pipelines.build_questions.command import main
from tests.helpers import towns


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = towns.write(tmp_path / "corpus.jsonl")
    facts = [
        {
            "id": f"f{i}",
            "title": f"Land{i}",
            "text": f"Land{i} is a country in Europe. Its road goes to Arlaton each year.",
        }
        for i in range(20)
    ]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in facts), encoding="utf-8")
    return str(path)


def build(corpus: str, output: Path, form: str, *more: str) -> list[Question]:
    assert main(["--input", corpus, "--format", form, "--output", str(output), *more]) == 0
    return read_questions(output)


def test_both_kinds_in_one_artefact_are_those_of_each_alone(corpus: str, tmp_path: Path) -> None:
    both = build(corpus, tmp_path / "both", "cloze+natural", "--pool-size", "5")
    parts = [build(corpus, tmp_path / kind, kind, "--pool-size", "5") for kind in ("cloze", "natural")]
    assert both == [q for part in parts for q in part]
    kinds = Counter(q.kind for q in both)
    assert kinds.keys() == {"cloze", "natural"}
    counts = read_manifest(tmp_path / "both", "QUESTIONS")["counts"]
    assert (counts["kind cloze"], counts["kind natural"]) == (kinds["cloze"], kinds["natural"])
    assert counts["natural: facts"] >= kinds["natural"]
    trained, unseen = ({t for q in both if q.split == s for t in q.positive_ids} for s in ("train", "unseen"))
    assert not trained & unseen


def test_what_a_kind_does_not_read_is_refused(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--min-words 3: --format natural has no sentences with a gap"):
        build(corpus, tmp_path / "out", "natural", "--min-words", "3")
    with pytest.raises(InputError, match="--format natural reads a corpus: --qrels"):
        build(corpus, tmp_path / "out", "natural", "--qrels", corpus)
    plain = str(towns.write(tmp_path / "plain.jsonl"))
    with pytest.raises(InputError, match="no article states a fact in a known form"):
        build(plain, tmp_path / "out", "natural")
