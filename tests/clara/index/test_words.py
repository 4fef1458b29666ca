"""The words part of an INDEX: against bm25s itself, over any shards, linked, interrupted, damaged, without words."""

import dataclasses
import json
import os
from pathlib import Path

import bm25s
import numpy as np
import pytest

import clara.index.build
import clara.index.parts
import clara.index.words
from clara.data.records import input_text
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.search import KIND, MemoryIndex
from clara.index.tokens import words_of
from clara.index.words import NAME as FOLDER
from clara.memory.store import MemoryStore
from clara.retrieval.bm25 import Bm25
from clara.storage.artefact import Artefact
from clara.storage.manifest import read_manifest
from tests.helpers.texts import texts_of, write_texts


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "memory", texts_of(400))


def build(memory: Path, output: Path, **options: object) -> Path:
    build_index(memory, output, "Flat", num_queries=0, **options)
    return output


def open_bm25(memory: Path, index: Path) -> Bm25:
    return Bm25.open(Artefact.open(index, KIND), MemoryStore.open(memory))


def part(index: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((index / FOLDER).iterdir())}


@pytest.mark.parametrize("at_once", [1, 700, 4 * 2**20])
def test_scores_are_bm25s_own_bit_for_bit(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(clara.index.words, "_POSTINGS_AT_ONCE", at_once)
    monkeypatch.setattr(clara.index.words, "_ROWS_AT_ONCE", 50)
    index, store = build(memory, tmp_path / "index"), MemoryStore.open(memory)
    ours = bm25s.BM25.load(index / FOLDER, mmap=True, show_progress=False)
    tokens = [words_of(input_text(chunk.title, chunk.text)) for chunk in store.records(store.row_ids)]
    assert not all(tokens)
    oracle = bm25s.BM25(method="lucene")
    oracle.index(tokens, show_progress=False)
    assert {*oracle.vocab_dict} == {*ours.vocab_dict, ""}
    for word, number in ours.vocab_dict.items():
        expected = oracle.get_scores([word])
        np.testing.assert_array_equal(ours.get_scores([word]), expected)
        begin, end = ours.scores["indptr"][number : number + 2]
        assert ours.scores["indices"][begin:end].tolist() == np.flatnonzero(expected).tolist()


def test_the_part_and_what_is_found_do_not_depend_on_the_shards(tmp_path: Path, memory: Path) -> None:
    one = write_texts(tmp_path / "one", texts_of(400), num_shards=1)
    first, second = build(memory, tmp_path / "first"), build(one, tmp_path / "second")
    assert part(first) == part(second)
    questions = ["word1 word17 word40", "東京の猫", "title5"]
    rows, scores = open_bm25(memory, first).search(questions, 20)
    in_ram = Bm25.of_memory(MemoryStore.open(one)).search(questions, 20)
    np.testing.assert_array_equal(rows, in_ram[0])
    np.testing.assert_array_equal(scores, in_ram[1])
    assert (rows[:, 0] >= 0).all()


def test_the_part_is_mapped_and_its_files_are_in_the_manifest(tmp_path: Path, memory: Path) -> None:
    index = build(memory, tmp_path / "index")
    found = open_bm25(memory, index)
    assert isinstance(found._index.scores["data"], np.memmap)
    listed = {entry["path"] for entry in read_manifest(index, KIND)["files"]}
    assert {f"{FOLDER}/{name}" for name in part(index)} < listed
    Artefact.open(index, KIND, verify=True)


def test_an_older_index_of_the_same_rows_lends_its_part(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build(memory, tmp_path / "old")
    changed = build(write_texts(tmp_path / "changed", texts_of(401)), tmp_path / "v1", parent=str(old))
    assert part(changed) != part(old)  # of other rows it is rebuilt

    def refuse(*_: object) -> None:
        raise AssertionError("words are built")

    monkeypatch.setattr(clara.index.words, "build_words", refuse)
    same = write_texts(tmp_path / "again", texts_of(400), num_shards=2)
    new = build(same, tmp_path / "new", parts_from=str(old))
    assert all(os.path.samefile(path, new / FOLDER / path.name) for path in (old / FOLDER).iterdir())
    Artefact.open(new, KIND, verify=True)


def test_an_interrupted_build_keeps_a_finished_part_and_never_writes_into_a_linked_one(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build(memory, tmp_path / "old")
    before = part(old)
    with monkeypatch.context() as patch:
        patch.setattr(clara.index.parts, "atomic_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build(memory, tmp_path / "new", parts_from=str(old))
    build(memory, tmp_path / "new")
    assert part(old) == before == part(tmp_path / "new")
    assert not any(os.path.samefile(p, tmp_path / "new" / FOLDER / p.name) for p in (old / FOLDER).iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(clara.index.build, "write_manifest", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build(memory, tmp_path / "third")
    assert part(build(memory, tmp_path / "third")) == before


def test_a_corpus_without_a_word_is_refused_and_indexed_on_request(tmp_path: Path) -> None:
    memory = write_texts(tmp_path / "memory", [("", "…"), ("", "the"), ("", "x y")])
    with pytest.raises(InputError, match=r"memory: no text has a word .*--no-words"):
        build(memory, tmp_path / "index")
    index = build(memory, tmp_path / "index", words=False)
    assert not (index / FOLDER).exists()
    assert read_manifest(index, KIND)["words"] is None
    with pytest.raises(InputError, match="no text has a word"):
        open_bm25(memory, index)


def test_an_index_without_the_part_is_read_as_before(
    tmp_path: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = build(memory, tmp_path / "index", words=False)
    manifest = json.loads((index / "manifest.json").read_text())
    del manifest["words"]
    (index / "manifest.json").write_text(json.dumps(manifest))
    store = MemoryStore.open(memory)
    assert MemoryIndex.open(index, store).artefact is not None
    found = open_bm25(memory, index).search(["word1 word2"], 5)
    np.testing.assert_array_equal(found[0], Bm25.of_memory(store).search(["word1 word2"], 5)[0])
    [line] = caplog.messages
    assert line == f"{index} has no words part: BM25 is built in RAM; build the INDEX again to store it"


def test_words_of_another_version_are_not_searched(
    tmp_path: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A question's words are cut as this version cuts them; the part may hold others."""
    index = build(memory, tmp_path / "index")
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["words"]["tokeniser"] -= 1
    (index / "manifest.json").write_text(json.dumps(manifest))
    found = open_bm25(memory, index).search(["word1 word2"], 5)
    np.testing.assert_array_equal(found[0], Bm25.of_memory(MemoryStore.open(memory)).search(["word1 word2"], 5)[0])
    assert caplog.messages[0].startswith(f"{index} has a words part of another version: BM25 is built in RAM;")


def test_a_rebuild_without_words_leaves_none(tmp_path: Path, memory: Path) -> None:
    index = build(memory, tmp_path / "index")
    build(memory, tmp_path / "index", words=False)
    assert not (index / FOLDER).exists()


@pytest.mark.parametrize("name", ["data.csc.index.npy", "vocab.index.json", "params.index.json"])
def test_a_damaged_part_is_refused(tmp_path: Path, memory: Path, name: str) -> None:
    index = build(memory, tmp_path / "index")
    path, artefact, store = index / FOLDER / name, Artefact.open(index, KIND), MemoryStore.open(memory)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"{name}: .* bytes, the manifest says"):
        Bm25.open(artefact, store)
    path.write_bytes(b"?" * len(whole))
    with pytest.raises(InputError, match="words: damaged"):
        Bm25.open(artefact, store)
    files = [{**file, "bytes": 0} if file["path"].endswith(name) else file for file in artefact.manifest["files"]]
    path.unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        Bm25.open(dataclasses.replace(artefact, manifest={**artefact.manifest, "files": files}), store)
