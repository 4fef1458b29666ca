"""The dense part of an INDEX: against the model, over any shards, linked, interrupted, damaged, of another model."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import clara.index.dense
from clara.config.tree import Retrieval
from clara.data.records import input_text
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.dense import NAME, open_dense
from clara.index.embedding import DenseEncoder
from clara.index.search import KIND, MemoryIndex
from clara.memory.store import MemoryStore
from clara.retrieval.dense import DenseRanker
from clara.retrieval.pools import SourceInputs, text_sources
from clara.retrieval.ranker import Queries
from clara.storage.artefact import Artefact
from clara.storage.manifest import read_manifest
from pipelines.build_index import main
from tests.helpers import embedding_model
from tests.helpers.texts import texts_of, write_texts

ROWS = 60


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DenseEncoder:
    return DenseEncoder(str(embedding_model.write(tmp_path_factory.mktemp("dense") / "model")))


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "memory", texts_of(ROWS))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, memory: Path, encoder: DenseEncoder) -> Path:
    return build(memory, tmp_path_factory.mktemp("index") / "index", dense=encoder)


def build(memory: Path, output: Path, **options: Any) -> Path:
    build_index(memory, output, "Flat", num_queries=0, **options)
    return output


def vectors(index: Path) -> bytes:
    return (index / NAME / "vectors.npy").read_bytes()


def test_vectors_are_those_of_the_model_whatever_the_shards(
    tmp_path: Path, memory: Path, index: Path, encoder: DenseEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore.open(memory)
    texts = [input_text(chunk.title, chunk.text) for chunk in store.records(store.row_ids)]
    expected = torch.nn.functional.normalize(encoder.embed_texts(texts)).numpy()
    np.testing.assert_allclose(open_dense(Artefact.open(index, KIND), encoder), expected, atol=1e-3)
    described = read_manifest(index, KIND)["dense"]
    assert (described["model"], described["size"], described["similarity"]) == (
        encoder.hash,
        embedding_model.SIZE,
        "cosine",
    )
    assert "query" in described["prompts"]
    monkeypatch.setattr(DenseEncoder, "block_rows", 7)
    other = build(write_texts(tmp_path / "one", texts_of(ROWS), num_shards=1), tmp_path / "index", dense=encoder)
    np.testing.assert_allclose(np.load(other / NAME / "vectors.npy"), np.load(index / NAME / "vectors.npy"), atol=1e-3)


def test_ranking_is_that_of_vectors_computed_now(memory: Path, index: Path, encoder: DenseEncoder) -> None:
    store = MemoryStore.open(memory)
    ranker = DenseRanker.open(Artefact.open(index, KIND), store, encoder)
    now = DenseRanker.of_memory(store, encoder)
    rows = store.row_ids.tolist()
    queries = Queries(["word1 word2", "title9"], [{rows[3]}, ()])
    expected = np.array(now.score(queries, [rows, rows]))
    np.testing.assert_allclose(ranker.score(queries, [rows, rows]), expected, atol=2e-3)
    found = ranker.rank(queries, ROWS + 5)
    assert sorted(found[0]) == sorted({*rows} - {rows[3]})
    for scores, ranked in zip(ranker.score(queries, found), found, strict=True):
        assert scores == sorted(scores, reverse=True)
        assert len(ranked) == len({*ranked})
    assert [ranked[:4] for ranked in found] == ranker.rank(queries, 4)


def test_an_older_index_of_the_same_rows_lends_its_vectors_without_a_model(
    tmp_path: Path, memory: Path, index: Path, encoder: DenseEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("vectors are computed")

    monkeypatch.setattr(clara.index.dense, "_compute", refuse)
    new = build(memory, tmp_path / "new", parts_from=str(index))
    assert os.path.samefile(new / NAME / "vectors.npy", index / NAME / "vectors.npy")
    assert read_manifest(new, KIND)["dense"] == read_manifest(index, KIND)["dense"]
    assert not (build(memory, tmp_path / "unasked") / NAME).exists()
    asked = build(memory, tmp_path / "asked", dense=encoder, parent=str(index))
    assert os.path.samefile(asked / NAME / "vectors.npy", index / NAME / "vectors.npy")


def test_only_rows_that_an_older_index_lacks_are_embedded(
    tmp_path: Path, index: Path, encoder: DenseEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = write_texts(tmp_path / "changed", [*texts_of(ROWS)[5:], ("New", "word1"), ("Newer", "word2")])
    whole = build(changed, tmp_path / "whole", dense=encoder)
    embedded: list[str] = []
    real = DenseEncoder.embed_texts

    def noted(self: DenseEncoder, texts: list[str], **options: Any) -> torch.Tensor:
        embedded.extend(texts)
        return real(self, texts, **options)

    monkeypatch.setattr(DenseEncoder, "embed_texts", noted)
    new = build(changed, tmp_path / "new", dense=encoder, parent=str(index))
    assert sorted(embedded) == ["New\nword1", "Newer\nword2"]
    np.testing.assert_allclose(np.load(new / NAME / "vectors.npy"), np.load(whole / NAME / "vectors.npy"), atol=1e-3)


def test_an_interrupted_build_goes_on_from_finished_blocks(
    tmp_path: Path, memory: Path, index: Path, encoder: DenseEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DenseEncoder, "block_rows", 16)
    real, calls = clara.index.dense._Embedding.vectors, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(clara.index.dense._Embedding, "vectors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(memory, tmp_path / "index", dense=encoder)
    build(memory, tmp_path / "index", dense=encoder)
    blocks = len(list(clara.index.dense.pieces_of(MemoryStore.open(memory), 16)))
    assert len(calls) == blocks + 1
    np.testing.assert_allclose(
        np.load(tmp_path / "index" / NAME / "vectors.npy"), np.load(index / NAME / "vectors.npy"), atol=1e-3
    )


def test_vectors_that_are_not_finite_are_refused(
    tmp_path: Path, memory: Path, index: Path, encoder: DenseEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DenseEncoder, "embed_texts", lambda self, texts, **_: torch.full((len(texts), 16), torch.nan))
        with pytest.raises(InputError, match=r"the vector of row \d+ of .* is not finite in float16"):
            build(memory, tmp_path / "index", dense=encoder)
    ranker = DenseRanker.open(Artefact.open(index, KIND), MemoryStore.open(memory), encoder)
    monkeypatch.setattr(encoder.model, "encode_query", lambda texts, **_: torch.full((len(texts), 16), torch.nan))
    with pytest.raises(InputError, match="the vector of question 'why' is not finite"):
        ranker.rank(Queries(["why"], [()]), 3)
    monkeypatch.setattr(encoder.model, "encode_query", lambda texts, **_: torch.ones(len(texts), 5))
    with pytest.raises(InputError, match="gives vectors of 5 numbers, those of the rows have 16"):
        ranker.rank(Queries(["why"], [()]), 3)


def edit(folder: Path, file: str, **changed: Any) -> None:
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | changed))


def shifted_ids(folder: Path) -> dict[str, Any]:
    """The tokenizer of a larger vocabulary: that of another model."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    return {"model": model | {"vocab": {word: number + 10_000 for word, number in model["vocab"].items()}}}


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    dropped = next(name for name in weights if name.endswith("dense.weight") and "pooler" not in name)
    kept = {name: weight for name, weight in weights.items() if name != dropped}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: os.truncate(f / "model.safetensors", 100), "cannot load it"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot load it"),
        (lambda f: (f / "modules.json").write_text("[1, 2]"), "cannot load it"),
        (without_a_weight, r"1 weights are not in its files \(first: .*dense.weight\)"),
        (without_tokenizer, "its tokenizer knows no word.*tokenizer.json"),
        (
            lambda f: edit(f, "1_Pooling/config.json", word_embedding_dimension=99),
            "have 99 numbers, and gives .* of 16",
        ),
        (lambda f: edit(f, "sentence_bert_config.json", max_seq_length="many"), "cannot (load|embed texts with) it"),
        (lambda f: edit(f, "tokenizer.json", **shifted_ids(f)), "cannot (load|embed texts with) it"),
    ],
    ids=[
        "weights cut",
        "no weights",
        "modules",
        "a weight",
        "no tokenizer",
        "size",
        "length",
        "ids beyond the embeddings",
    ],
)
def test_a_damaged_model_is_refused_in_one_line(
    tmp_path: Path, memory: Path, encoder: DenseEncoder, damage: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(encoder.folder, folder)
    damage(folder)
    with pytest.raises(InputError, match=f"--dense-model '.*model': .*{message}"):
        build(memory, tmp_path / "index", dense=DenseEncoder(str(folder)))


def test_another_model_or_none_is_refused(tmp_path: Path, memory: Path, index: Path, encoder: DenseEncoder) -> None:
    artefact, store = Artefact.open(index, KIND), MemoryStore.open(memory)
    other = DenseEncoder(str(embedding_model.write(tmp_path / "other", seed=4)))
    with pytest.raises(InputError, match=f"its hash is {other.hash[:16]}….* are of model {encoder.hash[:16]}…"):
        DenseRanker.open(artefact, store, other)
    without = build(memory, tmp_path / "without")
    with pytest.raises(InputError, match=r"without: has no dense vectors; build the INDEX with --dense-model"):
        DenseRanker.open(Artefact.open(without, KIND), store, encoder)
    counts = {"memory": 0, "bm25": 0, "dense": 3}
    with pytest.raises(InputError, match="there is no embedding model; give index and"):
        text_sources(counts, SourceInputs(store, artefact))
    with pytest.raises(InputError, match="there is no INDEX"):
        text_sources(counts, SourceInputs(store, None, Retrieval(dense_model=encoder.folder)))
    [source] = text_sources(counts, SourceInputs(store, artefact, Retrieval(dense_model=encoder.folder)))
    assert source.count == 3
    assert len(source.ranker.rank(Queries(["word1"], [()]), source.count)[0]) == 3


def test_a_damaged_part_is_refused(tmp_path: Path, memory: Path, encoder: DenseEncoder) -> None:
    index = build(memory, tmp_path / "index", dense=encoder)
    path, whole = index / NAME / "vectors.npy", vectors(index)
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"vectors\.npy: .* bytes, the manifest says"):
        open_dense(Artefact.open(index, KIND), encoder)
    path.write_bytes(b"?" * len(whole))
    with pytest.raises(InputError, match=r"vectors\.npy: damaged"):
        open_dense(Artefact.open(index, KIND), encoder)
    path.write_bytes(whole)
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["dense"]["size"] = 8
    (index / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"float16 \[60, 16\], expected float16 \[60, 8\]"):
        open_dense(Artefact.open(index, KIND), encoder)


def test_the_command_builds_the_part(tmp_path: Path, memory: Path, index: Path, encoder: DenseEncoder) -> None:
    arguments = ["--memory", str(memory), "--output", str(tmp_path / "index"), "--queries", "0", "--quiet"]
    assert main([*arguments, "--dense-model", encoder.folder]) == 0
    assert vectors(tmp_path / "index") == vectors(index)
    with pytest.raises(InputError, match="no modules"):
        main([*arguments, "--dense-model", str(tmp_path)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"memory": None}, "memory is None, expected a text"),
        ({"memory": 7}, "memory is 7, expected a text"),
        ({"words": "abc"}, "words is 'abc', expected an object"),
        ({"dense": ["abc"]}, "dense is .'abc'., expected an object"),
        ({"dense": {"size": 16}}, "dense.model is None, expected a text"),
        ({"dense": {"model": "abc", "size": "16"}}, "dense.size is '16', expected a whole number"),
    ],
)
def test_a_manifest_that_does_not_describe_its_parts_is_refused(
    tmp_path: Path, memory: Path, index: Path, changed: dict[str, Any], message: str
) -> None:
    shutil.copytree(index, tmp_path / "index")
    edit(tmp_path / "index", "manifest.json", **changed)
    with pytest.raises(InputError, match=rf"index manifest\.json: {message}"):
        MemoryIndex.open(tmp_path / "index", MemoryStore.open(memory))
