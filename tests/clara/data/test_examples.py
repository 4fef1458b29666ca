"""EXAMPLES: written and read, and what an example must hold."""

from pathlib import Path
from typing import Any

import pytest

from clara.data import examples
from clara.data.examples import Example, read_examples, write_examples
from clara.errors import InputError
from clara.storage.folders import sha256_file
from tests.helpers.artefacts import verify

GOOD = [
    Example("1", "d1", "Title", "Text.", "cloze", ("A ____?", "Another ____?"), ("b", "c")),
    Example("2", "d1", "", "Text.", "autoencode"),
    Example("3", "d2", "Title", "Text.", "paraphrase", (), ("Other words.",)),
]


def test_round_trip(tmp_path: Path) -> None:
    manifest = write_examples(tmp_path, GOOD, recipe={"seed": 0}, counts={"documents": 2})
    assert read_examples(tmp_path) == GOOD
    assert manifest["counts"] == {
        "examples": 3,
        "kind autoencode": 1,
        "kind cloze": 1,
        "kind paraphrase": 1,
        "documents": 2,
    }
    verify(tmp_path, "EXAMPLES")


def test_the_title_is_a_part_of_what_is_compressed() -> None:
    assert [e.document for e in GOOD[:2]] == ["Title\nText.", "Text."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poem"}, "kind 'poem'"),
        ({"text": ""}, "empty text"),
        ({"answers": ("b",)}, "2 questions and 1 answers"),
        ({"questions": (), "answers": ()}, "at least one"),
        ({"kind": "autoencode"}, "autoencode neither"),
        ({"kind": "paraphrase"}, "paraphrase has no question and one answer"),
    ],
)
def test_bad_examples_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Example(**(vars(GOOD[0]) | change))


def test_none_is_not_enough(tmp_path: Path) -> None:
    write_examples(tmp_path, [], recipe={})
    with pytest.raises(InputError, match="holds no example"):
        read_examples(tmp_path)
    with pytest.raises(InputError, match="no finished EXAMPLES"):
        read_examples(tmp_path / "nowhere")


def test_joined_parts_are_the_same_bytes_however_they_were_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_ROWS_A_GROUP", 3)
    rows = [Example(str(n), "d", "T", f"Text {n}.", "paraphrase", (), (f"{n} in other words.",)) for n in range(10)]
    hashes = set()
    for cuts in ([10], [1, 4, 0, 5], [3, 3, 3, 1], [0, 10]):
        parts, begin = [], 0
        for number, count in enumerate(cuts):
            parts.append(tmp_path / f"part-{number}.parquet")
            examples.write_part(parts[-1], rows[begin : begin + count])
            begin += count
        manifest = examples.join_examples(tmp_path / "joined", parts, recipe={}, counts={"asked": 10})
        assert manifest["counts"] == {"examples": 10, "kind paraphrase": 10, "asked": 10}
        assert read_examples(tmp_path / "joined") == rows
        hashes.add(sha256_file(tmp_path / "joined" / examples.FILE))
    assert len(hashes) == 1
