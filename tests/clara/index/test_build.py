"""Building an INDEX: bytes independent of parts, interruptions, MEMORY versions, sampled recall, refusals."""

import os
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import clara.index.build
from clara.errors import InputError
from clara.index.build import BUILD, build, build_index
from clara.index.ivf_file import ids_of
from clara.index.recall import Measurement, Recall, exact_among, exact_search
from clara.index.recipe import Build
from clara.index.search import FILE, MemoryIndex
from clara.memory.fingerprint import Fingerprint
from clara.memory.keys import key_projection
from clara.memory.shards import write_shard
from clara.memory.store import MemoryStore
from clara.storage.manifest import read_manifest
from tests.helpers.memories import FIRST_LEVEL, D, M, chunk, random_memory, write_memory

ROWS = 1200
FACTORIES = ["IVF16,SQfp16", "IVF8,PQ6x4", "IVF8,Flat"]


@pytest.fixture(scope="module")
def memory_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_memory(tmp_path_factory.mktemp("memory") / "memory", random_memory(ROWS))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clara.index.build._PART_BYTES", 4000)
    monkeypatch.setattr("clara.index.build.ADD_ROWS", 50)
    monkeypatch.setattr("clara.index.rows.ADD_ROWS", 50)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_file_is_what_faiss_writes_of_all_rows_at_once(
    tmp_path: Path, memory_dir: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    kept: list[Path] = []
    monkeypatch.setattr("clara.index.build.shutil.rmtree", lambda folder, **_: kept.append(Path(folder)))
    build_index(memory_dir, tmp_path, factory, num_queries=0)
    assert len(list(kept[-1].glob("part-*.faiss"))) > 2
    index = faiss.read_index(str(kept[-1] / "trained.faiss"))
    store = MemoryStore.open(memory_dir)
    index.add_with_ids(store.keys(), store.row_ids)
    faiss.extract_index_ivf(index).nprobe = 8
    assert (tmp_path / FILE).read_bytes() == faiss.serialize_index(index).tobytes()


def test_nothing_but_keys_is_read(tmp_path: Path, memory_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the payload is read")

    monkeypatch.setattr(MemoryStore, "memory", refuse)
    build_index(memory_dir, tmp_path / "index", "IVF16,SQfp16", num_queries=0)
    with pytest.raises(AssertionError, match="payload"):
        build_index(memory_dir, tmp_path / "index", "IVF16,SQfp16", num_queries=4)


@pytest.mark.parametrize("stop_at", ["part-00000.faiss", "part-00003.faiss", FILE])
def test_an_interrupted_build_goes_on_from_what_is_done(
    tmp_path: Path, memory_dir: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    settings: dict[str, Any] = {"num_queries": 0}
    whole = build_index(memory_dir, tmp_path / "whole", "IVF16,SQfp16", **settings)

    def interrupt(*arguments: Any) -> Any:
        if any(isinstance(a, Path) and a.name == stop_at for a in arguments):
            raise KeyboardInterrupt
        return real[stop_at == FILE](*arguments)

    real = (clara.index.build._write, clara.index.build.merge)
    with monkeypatch.context() as patch:
        patch.setattr(clara.index.build, "merge" if stop_at == FILE else "_write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_index(memory_dir, tmp_path / "index", "IVF16,SQfp16", **settings)
    work = tmp_path / "index" / BUILD
    done = {p.name: p.stat().st_mtime_ns for p in work.glob("*.faiss")}
    assert "trained.faiss" in done
    written: list[str] = []
    monkeypatch.setattr(
        clara.index.build, "_write", lambda index, path: (written.append(path.name), real[0](index, path))
    )
    again = build_index(memory_dir, tmp_path / "index", "IVF16,SQfp16", **settings)
    assert again["files"] == whole["files"]
    assert not {*written} & {*done}
    assert not work.exists()


def test_what_another_recipe_left_is_not_used(
    tmp_path: Path, memory_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(clara.index.build, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build_index(memory_dir, tmp_path / "index", "IVF16,SQfp16", num_queries=0)
    found = build_index(memory_dir, tmp_path / "index", "IVF8,SQ8", num_queries=0)
    assert (
        found["files"][0]["sha256"]
        == build_index(memory_dir, tmp_path / "other", "IVF8,SQ8", num_queries=0)["files"][0]["sha256"]
    )


# --- versions of MEMORY ----------------------------------------------------------------------------------------------


def new_version(old: Path, directory: Path, numbers: list[int], gone: list[int]) -> Path:
    """The old one's files, an overlay of these chunks with other vectors, and tombstones."""
    shutil.copytree(old, directory, copy_function=os.link)
    manifest = read_manifest(old, "MEMORY")
    (directory / "manifest.json").unlink()
    fingerprint = Fingerprint.from_dict(manifest["fingerprint_fields"], "")
    memory = random_memory(len(numbers), seed=99)
    keys = key_projection(M, D, fingerprint.key_size, fingerprint.key_seed).keys(memory)
    chunks = [chunk(n) for n in numbers]
    report = write_shard(directory, "overlay-00001", chunks, memory, keys, "float16", fingerprint=fingerprint.hash)
    fields = {k: manifest[k] for k in ("fingerprint_fields", "codec", "num_shards", "shards")}
    clara.index.build.write_manifest(
        directory,
        kind="MEMORY",
        files=[*manifest["files"], *report["files"]],
        recipe={},
        fingerprint=fingerprint.hash,
        overlays=["overlay-00001"],
        tombstones=[chunk(n).row_id for n in gone],
        **fields,
    )
    return directory


@pytest.mark.parametrize("factory", ["IVF16,SQfp16", "Flat"])
def test_an_index_built_from_its_parent_equals_one_built_from_scratch(
    tmp_path: Path, memory_dir: Path, factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    changed = [*range(0, 60), *range(ROWS, ROWS + 40)]
    version = new_version(memory_dir, tmp_path / "v1", changed, gone=[100, 101])
    build_index(memory_dir, tmp_path / "index-v0", factory, num_queries=0)
    build_index(version, tmp_path / "index-v1", factory, num_queries=0, parent=str(tmp_path / "index-v0"))
    store = MemoryStore.open(version)
    assert len(store) == ROWS + 38
    searched = MemoryIndex.open(tmp_path / "index-v1", store)
    query = random_memory(20, seed=3)
    assert (
        np.array_equal(searched.search(query, 10, first_level=len(store))[0], exact_search(store, query, 10))
        or factory != "Flat"
    )
    if factory == "Flat":
        assert "nothing is taken over" in caplog.text
        return
    assert f"{ROWS - 62} of {ROWS + 38} rows are taken over" in caplog.text
    # The same trained index, with every row added again.
    rebuilt = faiss.read_index(str(tmp_path / "index-v0" / FILE))
    rebuilt.reset()
    rebuilt.add_with_ids(store.keys(), store.row_ids)
    assert (tmp_path / "index-v1" / FILE).read_bytes() == faiss.serialize_index(rebuilt).tobytes()
    assert set(ids_of(searched.faiss).tolist()) == set(store.row_ids.tolist())


def test_a_parent_whose_overlays_are_gone_is_not_trusted(
    tmp_path: Path, memory_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    version = new_version(memory_dir, tmp_path / "v1", list(range(50)), gone=[])
    build_index(version, tmp_path / "index-v1", "IVF16,SQfp16", num_queries=0)
    # In the older version the overlay's rows are in their base shards again, whose files the parent had too.
    build_index(memory_dir, tmp_path / "back", "IVF16,SQfp16", num_queries=0, parent=str(tmp_path / "index-v1"))
    assert "nothing is taken over" in caplog.text
    plain = build_index(memory_dir, tmp_path / "plain", "IVF16,SQfp16", num_queries=0)
    assert read_manifest(tmp_path / "back")["files"] == plain["files"]


# --- recall ----------------------------------------------------------------------------------------------------------


def test_recall_on_a_sample_of_shards_bounds_the_recall_from_below(tmp_path: Path) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(ROWS), key_size=12, num_shards=12)
    build(memory, tmp_path / "index", Build("Flat", measurement=Measurement(FIRST_LEVEL, num_queries=0)))
    index = MemoryIndex.open(tmp_path / "index", MemoryStore.open(memory))
    row_bytes, level = 2 * M * D, 200
    estimates = []
    for seed in range(12):
        sample = Recall(
            index,
            Measurement(FIRST_LEVEL, num_queries=60, most_bytes=ROWS * row_bytes // 3),
            seed=seed,
            row_bytes=row_bytes,
        )
        assert sample.rows_compared < ROWS / 2.5
        assert 150 <= sample.num_queries <= 270  # fewer rows, more queries
        estimates.append(sample.of(level))
    # By the definition, over every row: misses are rows better than the worst that was found.
    store, query = index.store, random_memory(ROWS) + 0.5 * random_memory(ROWS, seed=77)
    found, scores = index.search(query, 10, first_level=level)
    rows, exact = exact_among(index.keys, [store.row_ids], query, 200)
    missed = [
        np.count_nonzero(~np.isin(r, own) & (e > score[-1] + 1e-6))
        for own, score, r, e in zip(found, scores, rows, exact, strict=True)
    ]
    bound = 1 - np.mean(missed) / 10
    recall = np.mean([len(np.intersect1d(a, b[:10])) / 10 for a, b in zip(found, rows, strict=True)])
    assert 0.5 < bound <= recall < 0.98
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - bound) < 4 * error + 0.01


def test_a_sampled_measurement_is_logged(tmp_path: Path, memory_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    how = Build("Flat", measurement=Measurement(200, 64, most_bytes=500 * 2 * M * D))
    measured = build(memory_dir, tmp_path / "index", how)["measured"]
    assert not measured["exact"]
    assert 300 < measured["rows_compared"] < 500
    assert measured["num_queries"] > 64
    assert f"on {measured['rows_compared']} of {ROWS} rows" in caplog.text


# --- what must be refused --------------------------------------------------------------------------------------------


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPU code")
def test_a_gpu_that_is_not_there_is_an_error(tmp_path: Path, memory_dir: Path) -> None:
    with pytest.raises(InputError, match=r"built without GPU code; put faiss-gpu-cu12 in the place of faiss-cpu"):
        build_index(memory_dir, tmp_path / "index", gpu=True)


@pytest.mark.skipif(
    not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() < 1, reason="no GPU for FAISS here"
)
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_gpu_builds_an_index_as_good(tmp_path: Path, memory_dir: Path, factory: str) -> None:
    recalls = [
        build_index(memory_dir, tmp_path / name, factory, gpu=name == "gpu")["measured"]["recall_at_10"]
        for name in ("cpu", "gpu")
    ]
    assert abs(recalls[0] - recalls[1]) < 0.1


def test_kinds_without_lists_are_built_too(tmp_path: Path, memory_dir: Path) -> None:
    for factory in ("HNSW8", "SQ8", "IVF8,PQ6x4fs"):
        build_index(memory_dir, tmp_path / factory, factory, num_queries=0)
        found, _ = MemoryIndex.open(tmp_path / factory, MemoryStore.open(memory_dir)).search(
            random_memory(3, seed=7), 5, FIRST_LEVEL
        )
        assert (found >= 0).all()
