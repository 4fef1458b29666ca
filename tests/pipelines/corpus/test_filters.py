"""Filters: each reason by itself, off by default, refusals, and that the job's sums hold under all of them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.data.records import Document
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage.manifest import read_manifest
from pipelines.build_memory.command import main
from pipelines.corpus.filters import Filters, language_of, make_filters, symbol_ratio, why_dropped

ENGLISH = "The town sits on the river, and its market sells bread and wool to everybody who comes."
GERMAN = "Die Stadt liegt am Fluss, und auf ihrem Markt werden Brot und Wolle an alle verkauft, die kommen."
FRENCH = "La ville se trouve au bord du fleuve, et son marché vend du pain et de la laine à tous ceux qui viennent."


def reason(text: str, filters: Filters) -> str:
    found = why_dropped(Document("d", "", text), filters)
    return found[0] if found else ""


@given(st.text())
def test_nothing_is_dropped_by_default(text: str) -> None:
    assert why_dropped(Document("d", "", text), Filters()) is None
    assert Filters().settings() == {}


@given(st.text(max_size=30), st.integers(0, 20), st.integers(0, 20))
def test_length(text: str, least: int, more: int) -> None:
    found = reason(text, Filters(min_characters=least, max_characters=least + more))
    bound = least + more
    assert found == ("too short" if len(text) < least else "too long" if bound and len(text) > bound else "")


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("", 0),
        ("  \n", 0),
        ("abc 12", 0),
        ("a!", 0.5),
        ("<<>>", 1),
        ("e\u0301 ü 你好", 0),
        ("{a} = [b]", 5 / 7),
        ("☃a", 0.5),
    ],
)
def test_symbols(text: str, ratio: float) -> None:
    assert symbol_ratio(text) == pytest.approx(ratio)
    assert reason(text, Filters(max_symbol_ratio=0.5)) == ("too many symbols" if ratio > 0.5 else "")


def test_languages() -> None:
    assert [language_of(text) for text in (ENGLISH, GERMAN, FRENCH)] == ["en", "de", "fr"]
    assert reason(ENGLISH, Filters(languages=("en",))) == ""
    assert reason(GERMAN, Filters(languages=("de", "en"))) == ""
    assert reason(FRENCH, Filters(languages=("de", "en"))) == "other language"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, [], 1.0), "--min-characters -1: expected 0 or more"),
        ((9, 5, [], 1.0), "--max-characters 5: under --min-characters 9"),
        ((0, 0, [], 1.5), "--max-symbol-ratio 1.5: expected a share"),
        ((0, 0, ["english"], 1.0), "--language 'english': not a language that can be recognised"),
    ],
)
def test_bad_bounds_are_refused(arguments: tuple[int, int, list[str], float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_filters(*arguments)


def test_the_job_drops_documents_and_reports_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = [ENGLISH, GERMAN, "Short.", "{{{ [[[ %%% ]]] }}} of no use at all ((( ### )))", ENGLISH + " Again."]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)) + "not json\n"
    )
    filters = ["--min-characters=20", "--language", "en", "--max-symbol-ratio=0.2", "--max-failures=1"]
    given = [
        "--input",
        str(corpus),
        "--output",
        str(tmp_path / "memory"),
        "--checkpoint",
        str(tiny_checkpoint),
        "--num-workers=1",
    ]
    assert main([*given, *filters]) == 0
    manifest = read_manifest(tmp_path / "memory")
    counts = manifest["counts"]
    assert sorted(MemoryStore.open(tmp_path / "memory").document_ids) == ["0", "4"]
    assert counts["dropped by reason"] == {"other language": 1, "too many symbols": 1, "too short": 1}
    assert counts["records read"] == counts["documents"] + counts["dropped"] + counts["dead letters"] == 6
    letters = [json.loads(line) for line in (tmp_path / "memory" / "dead_letters.jsonl").read_text().splitlines()]
    assert [(x["line"], x["reason"], x["dropped"]) for x in letters] == [
        (2, "other language", True),
        (3, "too short", True),
        (4, "too many symbols", True),
        (6, "not JSON", False),
    ]
    assert manifest["made_by"]["recipe"]["filters"] == {
        "languages": ["en"],
        "max_symbol_ratio": 0.2,
        "min_characters": 20,
    }
