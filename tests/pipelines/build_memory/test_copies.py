"""Ids of dropped duplicates: MEMORY knows which rows represent them, and keeps it through every new version."""

from pathlib import Path

from clara.memory.compact import compact
from clara.memory.copies import COPIES
from clara.memory.store import MemoryStore
from clara.storage.manifest import read_manifest
from tests.helpers.memory_command import Build, dead_letters, jsonl

WORDS = [f"word{number}" for number in range(40)]
ROWS = [
    {"id": "first", "text": " ".join(WORDS)},
    {"id": "copy", "text": "  ".join(WORDS)},
    {"id": 4101, "text": " ".join([*WORDS[:-1], "other"])},
    {"id": "alone", "text": "Nothing like it."},
]


def rows_of(memory: Path) -> dict[str, list[int]]:
    store = MemoryStore.open(memory)
    return {name: store.rows_of(name) for name in ("first", "copy", "4101", "alone", "absent")}


def test_an_exact_copy_has_the_row_of_the_text_that_is_kept(build: Build) -> None:
    memory = build({"a.jsonl": jsonl(*ROWS), "b.jsonl": jsonl({"id": "again", **ROWS[3], "title": ""})})
    found = rows_of(memory)
    assert found["copy"] == found["first"]
    assert len({*map(tuple, found.values())}) == 4
    assert {*found["4101"]} - {*found["first"]}  # its end differs
    assert not found["absent"]
    assert {(d["document_id"], d["kept"]) for d in dead_letters(memory)} == {
        (d["document_id"], d["detail"].split()[1]) for d in dead_letters(memory)
    }
    store = MemoryStore.open(memory)
    assert {*store.document_ids} == {"4101", "alone", "first"}
    folded = compact(store, memory.parent / "folded", num_shards=2)
    assert COPIES in [entry["path"] for entry in folded["files"]]
    assert rows_of(memory.parent / "folded") == found


def test_a_near_duplicate_has_the_rows_of_the_document_that_it_is_similar_to(build: Build) -> None:
    memory = build({"a.jsonl": jsonl(*ROWS)}, "--near-duplicates=0.6")
    found = rows_of(memory)
    assert found["4101"] == found["copy"] == found["first"] != []
    assert [(d["document_id"], d["kept"]) for d in dead_letters(memory)] == [("copy", "first"), ("4101", "first")]


def test_a_document_of_several_chunks_keeps_those_that_others_hold(build: Build) -> None:
    shared, own = [f"shared{n}" for n in range(60)], [f"own{n}" for n in range(60)]
    rows = [{"id": "one", "text": " ".join(shared)}, {"id": "two", "text": " ".join([*shared, *own])}]
    memory = build({"a.jsonl": jsonl(*rows)}, "--max-tokens=24")
    store = MemoryStore.open(memory)
    own_rows = {row for row, name in zip(store.row_ids.tolist(), store.document_ids, strict=True) if name == "two"}
    assert own_rows < {*store.rows_of("two")}
    assert {*store.rows_of("two")} - own_rows <= {*store.rows_of("one")}


def test_an_update_knows_the_copies_of_the_new_corpus(build: Build) -> None:
    old = build({"a.jsonl": jsonl(*ROWS)})
    changed = [ROWS[1], *ROWS[2:], {"id": "fourth", "text": ROWS[3]["text"]}]
    new = build({"a.jsonl": jsonl(*changed)}, "--update", str(old), output="new")
    store = MemoryStore.open(new)
    assert store.rows_of("fourth") == store.rows_of("alone") != []
    assert not store.rows_of("first")
    assert store.rows_of("copy") == MemoryStore.open(old).rows_of("first")


def test_without_duplicates_there_is_no_such_file(build: Build) -> None:
    memory = build({"a.jsonl": jsonl(*ROWS[2:])})
    assert COPIES not in [entry["path"] for entry in read_manifest(memory)["files"]]
    assert not (memory / COPIES).exists()
