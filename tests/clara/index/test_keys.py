"""INDEX for every geometry of the score: brute force, exact search of few rows, parents, degenerate rows, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clara.index.build
from clara.arrays import NO_ROW, Floats
from clara.config.model import Score
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.keys import IndexKeys
from clara.index.recall import exact_search
from clara.index.search import FILE, MemoryIndex
from clara.memory.mean import MEAN
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED
from clara.retrieval.memory_ranker import ExactSearch
from clara.storage.folders import sha256_file
from clara.storage.manifest import read_manifest
from tests.helpers.memories import D, M, chunk, random_memory, write_memory

ROWS = 300
SCORES = [
    Score(pooling=pooling, centred=centred) for pooling in ("flattened", "slot_mean") for centred in (False, True)
]
OTHER = [score for score in SCORES if score != PUBLISHED]
KINDS = ["auto", "Flat", "IVF8,SQfp16", "IVF8,PQ6x4"]
OFFSET = random_memory(1, seed=40)  # rows and questions have a mean that is not zero


def questions(number: int, seed: int = 5) -> Floats:
    """Query vectors as a model returns them: near rows, without their mean."""
    return random_memory(number, seed=seed)


@pytest.fixture(scope="module")
def memory_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_memory(tmp_path_factory.mktemp("memory") / "memory", OFFSET + random_memory(ROWS), key_size=M * D)


@pytest.fixture(scope="module")
def store(memory_dir: Path) -> MemoryStore:
    return MemoryStore.open(memory_dir)


def by_definition(store: MemoryStore, query: Floats, score: Score) -> Any:
    """Scores `[B, rows]` in float64."""
    memory, query = store.memory(store.row_ids).astype(np.float64), query.astype(np.float64)
    if score.centred:
        memory = memory - memory.mean(axis=0)
    if score.pooling == "slot_mean":
        memory, query = memory.mean(axis=1), query.mean(axis=1)
    memory, query = memory.reshape(len(memory), -1), query.reshape(len(query), -1)
    lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(memory, axis=1)
    return query @ memory.T / lengths


# --- searching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_with_all_rows_as_candidates_a_search_is_exact(
    tmp_path: Path, memory_dir: Path, store: MemoryStore, score: Score, kind: str
) -> None:
    manifest = build_index(memory_dir, tmp_path / "index", kind, num_queries=0, score=score, probes=8 * ("IVF" in kind))
    assert manifest["score"] == score.model_dump()
    index, query = MemoryIndex.open(tmp_path / "index", store, score), questions(9)
    rows, scores = index.search(query, 12, first_level=ROWS)
    expected = by_definition(store, query, score)
    order = np.argsort(-expected, axis=1)[:, :12]
    assert np.array_equal(rows, store.row_ids[order])
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), atol=1e-6)
    plain, plain_scores = ExactSearch(store, score).search(query, 12, first_level=ROWS)
    assert np.array_equal(rows, plain)
    np.testing.assert_allclose(scores, plain_scores, atol=1e-6)
    assert np.array_equal(rows, exact_search(store, query, 12, score))


@pytest.mark.parametrize("score", OTHER, ids=str)
def test_a_key_is_the_score_up_to_how_it_is_stored(memory_dir: Path, store: MemoryStore, score: Score) -> None:
    """The projection of M·D numbers is exact; slot means are not projected."""
    keys, query = IndexKeys(store, score), questions(4)
    assert keys.size == (D if score.pooling == "slot_mean" else M * D)
    found = keys.of_queries(query) @ keys.of_rows(store.row_ids).T
    np.testing.assert_allclose(found, by_definition(store, query, score), atol=1e-5)
    alone = np.concatenate([keys.unit_rows(store.row_ids[n : n + 1]) for n in range(20)])
    assert np.array_equal(keys.unit_rows(store.row_ids[:20]), alone)


@pytest.mark.parametrize("held_bytes", [0, 2**27])
def test_given_rows_are_scored_in_their_order(
    tmp_path: Path, memory_dir: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    """In any order, one of them repeatedly, in blocks and pieces of few rows."""
    monkeypatch.setattr("clara.index.keys._BLOCK_BYTES", 7 * 4 * M * D)
    monkeypatch.setattr("clara.index.exact_scores._CACHE_BYTES", 3 * 4 * M * D)
    monkeypatch.setattr("clara.index.exact_scores._HELD_BYTES", held_bytes)
    build_index(memory_dir, tmp_path / "index", num_queries=0)
    index, query = MemoryIndex.open(tmp_path / "index", store), questions(3)
    rng = np.random.default_rng(0)
    places = [rng.permutation(ROWS), np.array([9, 2, 9, 250]), np.array([], np.int64)]
    found = index.cosines(query, [store.row_ids[own] for own in places])
    plain = ExactSearch(store).cosines(query, [store.row_ids[own] for own in places])
    assert all(np.array_equal(one, other) for one, other in zip(found, plain, strict=True))
    for line, own, scores in zip(by_definition(store, query, PUBLISHED), places, found, strict=True):
        np.testing.assert_allclose(scores, line[own], atol=1e-6)


def test_slot_means_are_stored_in_float16_where_rows_are_few(tmp_path: Path, memory_dir: Path) -> None:
    score = Score(pooling="slot_mean")
    assert build_index(memory_dir, tmp_path / "index", num_queries=0, score=score)["factory"] == "SQfp16"
    index: Any = faiss.read_index(str(tmp_path / "index" / FILE))
    assert (index.d, faiss.downcast_index(index.index).code_size) == (D, 2 * D)


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_few_rows_are_searched_exactly_whatever_the_first_level_is(
    tmp_path: Path, store: MemoryStore, memory_dir: Path, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"first_level": 10, "num_queries": 32, "score": score}
    manifest = build_index(memory_dir, tmp_path / "index", "IVF16,PQ1x4", exact_rows=ROWS, **settings)
    assert manifest["measured"]["recall_at_10"] == 1
    assert manifest["measured"]["first_level"] == ROWS
    query, rest = questions(7), [{int(row)} for row in store.row_ids[:7]]
    exact = MemoryIndex.open(tmp_path / "index", store, score, exact_rows=ROWS)
    rows, scores = exact.search(query, 5, first_level=5, exclude=rest)
    for number, line in enumerate(by_definition(store, query, score)):
        line[number] = -np.inf
        assert rows[number].tolist() == store.row_ids[np.argsort(-line)[:5]].tolist()
    # In groups of few queries, in blocks and pieces of few rows, and where no decoded rows stay, the bits are the same.
    monkeypatch.setattr("clara.index.search._PAYLOAD_BYTES", 2 * 32 * ROWS)
    monkeypatch.setattr("clara.index.keys._BLOCK_BYTES", 7 * 4 * M * D)
    monkeypatch.setattr("clara.index.exact_scores._CACHE_BYTES", 3 * 4 * M * D)
    monkeypatch.setattr("clara.index.exact_scores._HELD_BYTES", 0)
    again = MemoryIndex.open(tmp_path / "index", store, score, exact_rows=ROWS).search(query, 5, 5, rest)
    assert np.array_equal(rows, again[0])
    assert np.array_equal(scores, again[1])
    # One row too many: L counts again, and the recall of one-byte codes is low.
    coarse = build_index(memory_dir, tmp_path / "coarse", "IVF16,PQ1x4", exact_rows=ROWS - 1, **settings)
    assert coarse["measured"]["recall_at_10"] < 0.9
    assert coarse["measured"]["first_level"] == 10


@pytest.mark.parametrize("score", OTHER, ids=str)
@pytest.mark.parametrize("kind", ["auto", "IVF8,SQfp16"])
@pytest.mark.parametrize("exact_rows", [0, 100])
def test_degenerate_rows_and_questions_are_defined(tmp_path: Path, score: Score, kind: str, exact_rows: int) -> None:
    """Rows equal to the mean, and a question equal to its own, score 0 with everything; equal scores go by `row_id`."""
    same = np.repeat(random_memory(1), 60, axis=0)
    query = np.concatenate([random_memory(2, seed=3), np.zeros((1, M, D), np.float32)])
    for name, memory in {"one": same[:1], "same": same}.items():
        if name == "one" and kind != "auto":
            continue
        directory = write_memory(tmp_path / name, memory, num_shards=1, key_size=M * D)
        manifest = build_index(directory, tmp_path / f"i-{name}", kind, score=score, exact_rows=exact_rows)
        assert manifest["measured"]["recall_at_10"] == 1
        store = MemoryStore.open(directory)
        index = MemoryIndex.open(tmp_path / f"i-{name}", store, score, exact_rows)
        rows, scores = index.search(query, 3, first_level=len(memory) + 2)
        first = store.row_ids[:3].tolist()
        assert rows.tolist() == [first + [NO_ROW] * (3 - len(first))] * 3
        assert np.isfinite(scores[rows != NO_ROW]).all()
        assert (scores[2][: len(first)] == 0).all()
        if score.centred:
            assert (scores[:, : len(first)] == 0).all()


# --- versions --------------------------------------------------------------------------------------------------------


def with_mean_of(memory: Path, folder: Path, extra: int) -> Path:
    """A MEMORY of the same first rows and more, whose mean is another."""
    rows = MemoryStore.open(memory)
    order = {row: n for n, row in enumerate(rows.row_ids.tolist())}
    known = rows.memory(rows.row_ids)[[order[chunk(n).row_id] for n in range(len(rows))]]
    return write_memory(folder, np.concatenate([known, 3 + random_memory(extra, seed=8)]), key_size=M * D)


def test_a_parent_of_another_score_or_mean_gives_nothing(
    tmp_path: Path, memory_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    plain, centred = Score(pooling="slot_mean"), Score(pooling="slot_mean", centred=True)
    kind, settings = "IVF8,SQfp16", {"num_queries": 0}
    for score in (plain, centred):
        build_index(memory_dir, tmp_path / str(score), kind, score=score, **settings)
    later = with_mean_of(memory_dir, tmp_path / "later", extra=50)
    for score, parent, reason in (
        (plain, centred, "its keys are for the score slot_mean, centred, these for slot_mean"),
        (centred, centred, "the mean of the corpus, which the score subtracts, is another"),
    ):
        caplog.clear()
        made = build_index(later, tmp_path / "i", kind, score=score, parent=str(tmp_path / str(parent)), **settings)
        assert f"nothing is taken over from {tmp_path / str(parent)}: {reason}" in caplog.text
        alone = build_index(later, tmp_path / f"alone-{score}", kind, score=score, **settings)
        assert made["files"][0]["sha256"] == alone["files"][0]["sha256"]
    # With the same mean, as after an update of MEMORY, unchanged rows are taken over.
    same = tmp_path / "same"
    shutil.copytree(memory_dir, same)
    manifest = json.loads((same / "manifest.json").read_text())
    (same / "manifest.json").write_text(json.dumps(manifest | {"counts": {"another": 1}}))
    build_index(same, tmp_path / "j", kind, score=centred, parent=str(tmp_path / str(centred)), **settings)
    assert f"{ROWS} of {ROWS} rows are taken over" in caplog.text
    assert (tmp_path / "j" / FILE).read_bytes() == (tmp_path / str(centred) / FILE).read_bytes()


def test_an_interrupted_build_of_another_score_goes_on_and_a_finished_one_is_kept(
    tmp_path: Path, memory_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara.index.build._PART_BYTES", 4000)
    score, kind = Score(pooling="slot_mean", centred=True), "IVF8,SQfp16"
    whole = build_index(memory_dir, tmp_path / "whole", kind, score=score, num_queries=0)
    with monkeypatch.context() as patch:
        patch.setattr(clara.index.build, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build_index(memory_dir, tmp_path / "index", kind, score=score, num_queries=0)
    with monkeypatch.context() as patch:
        patch.setattr(IndexKeys, "of_rows", lambda *_: pytest.fail("a finished part is made again"))
        made = build_index(memory_dir, tmp_path / "index", kind, score=score, num_queries=0)
        assert made["files"] == whole["files"]
        assert build_index(memory_dir, tmp_path / "index", kind, score=score, num_queries=0) == made
    for other in SCORES[:3]:  # what is there is of another score
        assert build_index(memory_dir, tmp_path / "index", kind, score=other, num_queries=0)["score"] != made["score"]


# --- what must be refused --------------------------------------------------------------------------------------------


def test_an_index_of_another_score_is_refused_with_what_to_run(
    tmp_path: Path, memory_dir: Path, store: MemoryStore
) -> None:
    build_index(memory_dir, tmp_path / "index", num_queries=0)
    with pytest.raises(
        InputError,
        match=r"keys are for the score flattened \(published\), that of the CHECKPOINT is slot_mean, centred; build .*"
        r"pipelines\.build_index --checkpoint DIR",
    ):
        MemoryIndex.open(tmp_path / "index", store, Score(pooling="slot_mean", centred=True))
    # An older program's manifest says nothing of a score.
    file = tmp_path / "index" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["score"]
    file.write_text(json.dumps(manifest))
    MemoryIndex.open(tmp_path / "index", store)
    file.write_text(json.dumps(manifest | {"score": {"pooling": "median"}}))
    with pytest.raises(InputError, match=r"manifest\.json score.*pooling"):
        MemoryIndex.open(tmp_path / "index", store)


def test_a_memory_without_a_mean_has_no_index_of_a_centred_score(tmp_path: Path, memory_dir: Path) -> None:
    shutil.copytree(memory_dir, tmp_path / "memory")
    manifest = read_manifest(memory_dir, "MEMORY")
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != MEAN]
    (tmp_path / "memory" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"has no mean of its vectors.*pipelines\.compact"):
        build_index(tmp_path / "memory", tmp_path / "index", score=Score(centred=True))


@pytest.mark.parametrize("name", ["mean", "sum"])
@pytest.mark.parametrize("damage", ["missing", "shape", "not finite", "integers"])
def test_a_mean_that_cannot_be_this_memorys_is_refused(
    tmp_path: Path, memory_dir: Path, damage: str, name: str
) -> None:
    shutil.copytree(memory_dir, tmp_path / "memory")
    path = tmp_path / "memory" / MEAN
    tensors = load_file(path)
    whole = tensors.pop(name)
    changed = {"shape": whole[:, 1:].copy(), "not finite": whole * np.nan, "integers": whole.astype(np.int8)}
    path.unlink()
    save_file(tensors | ({name: changed[damage]} if damage in changed else {}), path)
    manifest = read_manifest(memory_dir, "MEMORY")
    entries = {entry["path"]: entry for entry in manifest["files"]}
    entries[MEAN] |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (tmp_path / "memory" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match=rf"mean\.safetensors: {name} is .*, expected finite numbers of shape \[{M}, {D}\]"
    ):
        IndexKeys(MemoryStore.open(tmp_path / "memory"), Score(centred=True))
