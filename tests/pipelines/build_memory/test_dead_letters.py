"""Records that the corpus job does not use: reasons, dead letters, counts."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.model.model import ClaraModel
from clara.storage.manifest import read_manifest
from pipelines.corpus.document_ids import two_that_differ
from tests.helpers.dumps import PAGES, multistream
from tests.helpers.memory_command import Build, dead_letters, jsonl
from tests.helpers.page_parser import Page


def test_bad_records_are_reported_and_the_others_stay(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    bad = (
        b'{"id": "1", "text": "One."}\nnot json\n{"title": "no text"}\n{"text": "\xff"}\n{"text": ""}\n'
        b'{"id": "6", "text": "Six."}\n'
    )
    cut = gzip.compress(jsonl(*({"id": f"z{n}", "text": f"Zipped {n} {n * 7919}."} for n in range(300))))[:-400]
    with caplog.at_level("WARNING"):
        memory = build({"bad.jsonl": bad, "cut.jsonl.gz": cut, "plain.txt": b"Plain text."}, "--num-shards=2")
    letters = dead_letters(memory)
    assert [(Path(d["source"]).name, d["line"], d["reason"]) for d in letters[:4]] == [
        ("bad.jsonl", 2, "not JSON"),
        ("bad.jsonl", 3, "no text"),
        ("bad.jsonl", 4, "not UTF-8"),
        ("bad.jsonl", 5, "empty text"),
    ]
    assert [d["reason"] for d in letters[4:]] == ["damaged file"]
    counts = read_manifest(memory)["counts"]
    assert counts["dead letters"] == 5
    assert counts["records read"] == counts["documents"] + 5
    assert {"1", "6"} <= set(MemoryStore.open(memory).document_ids)
    assert "5 records could not be used" in caplog.text
    listed = [f for f in read_manifest(memory)["files"] if f["path"] == "dead_letters.jsonl"]
    assert [f["rows"] for f in listed] == [5]


def test_a_dump_is_read_stream_by_stream_and_what_is_dropped_is_no_failure(build: Build, tmp_path: Path) -> None:
    path = multistream(tmp_path, PAGES, 2)
    memory = build(path, "--max-failures=2")
    store = MemoryStore.open(memory, verify=True)
    assert sorted((r.document_id, r.title) for r in store.records(store.row_ids)) == [
        ("1001", "Arlen & Co"),
        ("1004", "Page 4"),
        ("1006", "Page 6"),
    ]
    counts = read_manifest(memory)["counts"]
    assert (counts["records read"], counts["rows"], counts["dropped"], counts["dead letters"]) == (7, 3, 2, 2)
    assert counts["dropped by reason"] == {"other namespace": 1, "redirect": 1}
    assert [(d["line"], d["reason"], d["dropped"]) for d in dead_letters(memory)] == [
        (2, "redirect", True),
        (3, "other namespace", True),
        (5, "empty text", False),
        (7, "no text", False),
    ]


def test_many_dead_letters_fill_several_files(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.corpus.dead_letters._LETTERS_PER_FILE", 10)
    memory = build({"a.jsonl": b'{"text": "One."}\n' + b"bad\n" * 35})
    parts = sorted(memory.glob("dead_letters*"))
    assert [p.name for p in parts] == [f"dead_letters-{n:05d}-of-00004.jsonl" for n in range(4)]
    lines = [json.loads(line)["line"] for part in parts for line in part.read_text().splitlines()]
    assert sorted(lines) == list(range(2, 37))
    assert {p.name for p in parts} <= {f["path"] for f in read_manifest(memory)["files"]}
    MemoryStore.open(memory, verify=True)


def test_more_failures_than_allowed_fail_the_job(build: Build, tmp_path: Path) -> None:
    files = {"a.jsonl": b'{"text": "One."}\nbad\nworse\n'}
    with pytest.raises(InputError, match=r"2 dead letters, --max-failures allows 1; by reason: \{'not JSON': 2\}"):
        build(files, "--max-failures=1")
    assert not (tmp_path / "memory" / "manifest.json").exists()
    assert len(dead_letters(tmp_path / "memory")) == 2
    build(files, "--max-failures=2")


def test_a_corpus_without_a_document_is_an_error(build: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no document could be used; failed: \{'no text': 2\}"):
        build({"a.jsonl": b'{"body": "x"}\n{"body": "y"}\n'})
    assert not (tmp_path / "memory" / "manifest.json").exists()


@pytest.mark.parametrize("runner", ["local", pytest.param("BundleBasedDirectRunner", marks=pytest.mark.slow)])
def test_each_dropped_duplicate_has_a_letter_that_names_the_chunk_that_is_kept(
    build: Build, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipelines.build_memory.local.records._FILE_BYTES", 300
    )  # so that equal chunks meet in one file, and in several
    text = " ".join("The same sentence about the river." for _ in range(30))
    copies = [{"id": f"copy{n}", "title": "T", "text": "One text."} for n in range(4)]
    files = {
        "b.jsonl": jsonl(*copies, {"id": "other", "text": "Another text."}, *copies[:2]),
        "a.jsonl": jsonl({"id": "winner", "title": "T", "text": "One  text."}),
        "c.jsonl": jsonl({"id": "repeats", "text": text}, {"id": "again", "text": text}) + b"broken\n",
    }
    memory = build(files, "--max-tokens=64", f"--runner={runner}")
    store = MemoryStore.open(memory)
    rows = {record.chunk_id: record for record in store.records(store.row_ids)}
    letters = [d for d in dead_letters(memory) if d["reason"] == "duplicate"]
    counts = read_manifest(memory)["counts"]
    assert len(letters) == counts["duplicate chunks dropped"] == counts["chunks"] - len(rows) > 10
    assert (counts["dropped"], counts["records read"]) == (0, counts["documents"] + counts["dead letters"])
    lost = []
    for letter in letters:
        chunk_id, start, end = re.fullmatch(
            r"of (\w+) \(characters (\d+) to (\d+) of the document\)", letter["detail"]
        ).groups()  # type: ignore[union-attr]
        assert letter["dropped"]
        name = Path(letter["source"]).name
        document = json.loads(files[name].splitlines()[letter["line"] - 1])
        assert letter["document_id"] == document["id"]
        assert rows[chunk_id].text == document["text"][int(start) : int(end)]
        assert rows[chunk_id].title == document.get("title", "")
        lost.append((name, letter["line"], int(start)))
        assert (Path(rows[chunk_id].source).name, rows[chunk_id].start) <= (name, int(start))
    assert len(set(lost)) == len(lost)
    assert [(name, line) for name, line, _ in lost if name == "b.jsonl"] == [("b.jsonl", n) for n in (1, 2, 3, 4, 6, 7)]
    assert {row.document_id for row in rows.values() if row.text == "One text."} == {"winner"}


@pytest.mark.parametrize("runner", ["local", pytest.param("BundleBasedDirectRunner", marks=pytest.mark.slow)])
def test_an_id_of_several_texts_is_reported_with_an_example(
    build: Build, runner: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "a.jsonl": jsonl(
            {"id": "b", "text": "One text."}, {"id": "z", "text": "Twice."}, {"id": "z", "text": "Twice."}
        ),
        "b.jsonl": jsonl(
            {"id": "a", "text": "Of a."},
            {"id": "b", "text": "One text."},
            {"id": "a", "text": "Of a too."},
            {"text": "None."},
        ),
        "c.jsonl": jsonl({"id": "b", "text": "A third."}, {"id": "b", "text": "A fourth."}, {"text": "None."}),
    }
    with caplog.at_level("WARNING"):
        memory = build(files, f"--runner={runner}")
    assert read_manifest(memory)["counts"]["document ids of several texts"] == 2
    corpus = memory.parent / "corpus"
    assert "2 document ids are shared by different texts" in caplog.text
    assert f"the first is 'b' ({corpus}/a.jsonl:1 and {corpus}/c.jsonl:1)" in caplog.text
    store = MemoryStore.open(memory)
    assert [len(store.rows_of(name)) for name in "ab"] == [2, 3]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.sampled_from("xyz"))), st.randoms())
def test_two_that_differ_are_found_in_any_parts(places: list[tuple[int, int, str]], rng: Any) -> None:
    parts = [((str(source), line, content),) for source, line, content in places]
    whole = two_that_differ(parts)
    rng.shuffle(parts)
    cut = rng.randint(0, len(parts))
    assert two_that_differ([two_that_differ(parts[:cut]), two_that_differ(parts[cut:])]) == whole


def test_truncation_is_reported_in_documents_and_tokens(
    build: Build, tiny_model: ClaraModel, capsys: pytest.CaptureFixture[str]
) -> None:
    title = " ".join(f"title{n}" for n in range(40))
    rows = [
        {"id": "cut", "title": title, "text": "One short sentence."},
        {"id": "whole", "title": "T", "text": "Another short one."},
    ]
    memory = build({"a.jsonl": jsonl(*rows)}, "--max-tokens=64")
    store = MemoryStore.open(memory)
    (record,) = [r for r in store.records(store.row_ids) if r.document_id == "cut"]
    cut = len(tiny_model.document_ids(title)) - len(tiny_model.document_ids(record.title))
    assert cut > 0
    expected = {
        "documents truncated": 1,
        "chunks truncated": 1,
        "tokens of chunks truncated": record.num_tokens,
        "title tokens cut off": cut,
        "documents split": 0,
        "tokens of documents split": 0,
    }
    assert expected.items() <= read_manifest(memory)["counts"].items()
    output = capsys.readouterr().out
    page = Page((memory / "summary.html").read_text()).rows
    for name, value in expected.items():
        assert f"{name}  {value}\n" in output
        assert page[name] == str(value)
    assert page["tokens cut off titles"] == str(cut)
    assert page["documents cut inside a sentence or title"] == "1"
