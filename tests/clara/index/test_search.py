"""INDEX: against brute force, exclusion, ties, versions of MEMORY, and what must be refused."""

import re
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from clara.arrays import Floats
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.factory import resolve_factory
from clara.index.recall import Measurement, exact_search, recall_warning
from clara.index.search import FILE, MemoryIndex
from clara.index.versions import next_settings
from clara.memory.shards import shard_name
from clara.memory.store import MemoryStore
from clara.storage.manifest import manifest_hash, read_manifest
from pipelines.build_index import main
from tests.helpers.memories import FIRST_LEVEL, D, M, chunk, random_memory, write_memory


def brute_force(store: MemoryStore, query: Floats, k: int, exclude: set[int] = frozenset()) -> list[tuple[int, float]]:  # type: ignore[assignment]
    scored = []
    for row in store.row_ids.tolist():
        if row not in exclude:
            value = store.memory([row])[0].ravel().astype(np.float64)
            asked = query.ravel().astype(np.float64)
            scored.append((row, float(value @ asked / np.linalg.norm(value) / np.linalg.norm(asked))))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.fixture(scope="module")
def memory_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_memory(tmp_path_factory.mktemp("memory") / "memory", random_memory(200))


@pytest.fixture(scope="module")
def store(memory_dir: Path) -> MemoryStore:
    return MemoryStore.open(memory_dir)


@pytest.fixture(scope="module")
def index(memory_dir: Path, store: MemoryStore, tmp_path_factory: pytest.TempPathFactory) -> MemoryIndex:
    output = tmp_path_factory.mktemp("index") / "index"
    build_index(memory_dir, output)
    return MemoryIndex.open(output, store)


def test_search_equals_brute_force(store: MemoryStore, index: MemoryIndex) -> None:
    query = random_memory(7, seed=1)
    rows, scores = index.search(query, 10, first_level=200)
    for number in range(7):
        expected = brute_force(store, query[number], 10)
        assert rows[number].tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(scores[number], [score for _, score in expected], atol=1e-6)
    assert np.array_equal(exact_search(store, query, 10), rows)


def test_a_small_first_level_suffices_where_the_key_is_the_cosine(index: MemoryIndex) -> None:
    # With KD = M·D the key's inner product is the cosine itself, but for float16.
    query = random_memory(20, seed=2)
    assert np.array_equal(index.search(query, 5, first_level=12)[0], index.search(query, 5, first_level=200)[0])


def test_results_do_not_depend_on_the_batch(index: MemoryIndex) -> None:
    query = random_memory(9, seed=3)
    rows, scores = index.search(query, 6, first_level=30)
    for number in range(9):
        alone = index.search(query[number : number + 1], 6, first_level=30)
        assert np.array_equal(alone[0][0], rows[number])
        assert np.array_equal(alone[1][0], scores[number])


def test_small_groups_of_queries_give_the_same(index: MemoryIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    query = random_memory(9, seed=4)
    whole = index.search(query, 6, first_level=30)
    monkeypatch.setattr("clara.index.search._PAYLOAD_BYTES", 4 * M * D * 30 * 2)
    parts = index.search(query, 6, first_level=30)
    assert np.array_equal(whole[0], parts[0])
    assert np.array_equal(whole[1], parts[1])
    assert np.array_equal(exact_search(index.store, query, 6), whole[0])


def test_excluded_rows_make_room_for_the_next(store: MemoryStore, index: MemoryIndex) -> None:
    query = random_memory(2, seed=5)
    first, _ = index.search(query, 8, first_level=8)
    barred = set(first[0, :5].tolist())
    rows, _ = index.search(query, 8, first_level=8, exclude=[barred, {123456}])
    assert rows[0].tolist() == [row for row, _ in brute_force(store, query[0], 8, barred)]
    assert np.array_equal(rows[1], first[1])


def test_fewer_rows_than_asked_are_filled_with_minus_one(tmp_path: Path) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(4))
    build_index(memory, tmp_path / "index")
    rows, scores = MemoryIndex.open(tmp_path / "index", MemoryStore.open(memory)).search(
        random_memory(1), 6, FIRST_LEVEL
    )
    assert (rows[0, :4] >= 0).all()
    assert rows[0, 4:].tolist() == [-1, -1]
    assert np.isneginf(scores[0, 4:]).all()


def test_where_every_row_is_excluded_nothing_is_found(store: MemoryStore, index: MemoryIndex) -> None:
    query = random_memory(2, seed=5)
    every = set(store.row_ids.tolist())
    for barred in ([every, every], [every, set()]):
        rows, scores = index.search(query, 3, FIRST_LEVEL, exclude=barred)
        assert rows[0].tolist() == [-1, -1, -1]
        assert np.isneginf(scores[0]).all()
    assert np.array_equal(rows[1], index.search(query, 3, FIRST_LEVEL)[0][1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_query_that_is_not_finite_finds_nothing_and_harms_no_other(
    index: MemoryIndex, bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    query = random_memory(4, seed=5)
    wanted = index.search(query, 3, FIRST_LEVEL)
    query[1, 0, 0] = query[3, 1, 2] = bad
    rows, scores = index.search(query, 3, FIRST_LEVEL)
    for found, before, nothing in ((rows, wanted[0], -1), (scores, wanted[1], -np.inf)):
        assert np.array_equal(found[[0, 2]], before[[0, 2]])
        assert (found[[1, 3]] == nothing).all()
    assert "2 of 4 queries are not finite" in caplog.text
    assert (index.search(query[[1, 3]], 3, FIRST_LEVEL)[0] == -1).all()


def test_equal_scores_come_by_row_id(tmp_path: Path) -> None:
    memory = write_memory(tmp_path / "memory", np.repeat(random_memory(1), 20, axis=0))
    build_index(memory, tmp_path / "index")
    store = MemoryStore.open(memory)
    rows, _ = MemoryIndex.open(tmp_path / "index", store).search(random_memory(1, seed=9), 20, FIRST_LEVEL)
    assert rows[0].tolist() == store.row_ids.tolist()


def test_which_of_many_equal_keys_are_candidates_is_not_left_to_faiss(tmp_path: Path) -> None:
    memory = write_memory(
        tmp_path / "memory", np.concatenate([np.repeat(random_memory(1), 40, axis=0), random_memory(60, seed=5)])
    )
    query = random_memory(1)
    for factory in ("Flat", "IVF4,Flat"):
        build_index(memory, tmp_path / factory, factory, num_queries=0, probes=0 if factory == "Flat" else 4)
        store = MemoryStore.open(memory)
        rows, _ = MemoryIndex.open(tmp_path / factory, store).search(query, 5, first_level=5)
        assert rows[0].tolist() == [row for row, _ in brute_force(store, query[0], 5)]


@pytest.mark.parametrize("factory", ["IVF4,Flat", "IVF4,PQ8x4fs", "IVF4,PQ2x4,RFlat", "OPQ2,IVF4,PQ8x4fs,RFlat"])
def test_probes_are_kept_by_every_kind_with_lists(tmp_path: Path, factory: str) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(400))
    store = MemoryStore.open(memory)
    for probes, kept in ((3, 3), (0, 4)):
        build_index(memory, tmp_path / str(probes), factory, num_queries=0, probes=probes)
        assert faiss.extract_index_ivf(MemoryIndex.open(tmp_path / str(probes), store).faiss).nprobe == kept
    # With every list probed and every row a candidate the second level decides alone.
    rows, _ = MemoryIndex.open(tmp_path / "0", store).search(random_memory(1, seed=9), 5, first_level=400)
    assert rows[0].tolist() == [row for row, _ in brute_force(store, random_memory(1, seed=9)[0], 5)]


def test_zero_memories_score_zero(tmp_path: Path) -> None:
    values = random_memory(3)
    values[1] = 0
    memory = write_memory(tmp_path / "memory", values)
    build_index(memory, tmp_path / "index")
    rows, scores = MemoryIndex.open(tmp_path / "index", MemoryStore.open(memory)).search(
        np.zeros((1, M, D), np.float32), 3, FIRST_LEVEL
    )
    assert sorted(rows[0].tolist()) == rows[0].tolist()
    assert scores.tolist() == [[0, 0, 0]]


def test_a_torch_query_is_the_same(index: MemoryIndex) -> None:
    query = random_memory(2, seed=6)
    assert np.array_equal(
        index.search(torch.from_numpy(query).requires_grad_(), 3, FIRST_LEVEL)[0],
        index.search(query, 3, FIRST_LEVEL)[0],
    )


def test_removed_rows_are_not_indexed(tmp_path: Path) -> None:
    gone = [chunk(3).row_id, chunk(17).row_id]
    memory = write_memory(tmp_path / "memory", random_memory(30), tombstones=gone)
    manifest = build_index(memory, tmp_path / "index")
    index: Any = faiss.read_index(str(tmp_path / "index" / FILE))
    ids = faiss.vector_to_array(index.id_map)
    assert sorted(ids.tolist()) == sorted({chunk(n).row_id for n in range(30)} - set(gone))
    assert manifest["counts"]["rows"] == 28


@pytest.mark.parametrize(
    "factory", ["IVF16,Flat", "IVF8,PQ6x4", "SQ8", pytest.param("OPQ4_12,IVF8,PQ4x4", marks=pytest.mark.slow)]
)
def test_trained_factories_find_most(tmp_path: Path, factory: str) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(1500))
    manifest = build_index(memory, tmp_path / "index", factory, num_queries=20, first_level=300, recall_floor=0.5)
    assert manifest["factory"] == factory
    again = build_index(memory, tmp_path / "again", factory, num_queries=20, first_level=300, recall_floor=0.5)
    assert again["files"] == manifest["files"]


def test_low_recall_is_warned_of_with_what_would_help_and_refused_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(400), key_size=M)
    arguments = ["--memory", str(memory), "--output", str(tmp_path / "index"), "--first-level", "10", "--quiet"]
    arguments += ["--exact-rows", "0"]
    message = r"recall@10 is 0\.\d+ with first_level 10.*with first_level 40 it would be"
    with pytest.raises(InputError, match=message + ".*--strict-recall"):
        main([*arguments, "--strict-recall"])
    assert not (tmp_path / "index" / "manifest.json").exists()
    assert main(arguments) == 0
    assert read_manifest(tmp_path / "index", "INDEX")["measured"]["recall_at_10"] < 0.9
    assert re.search(message, caplog.text)
    # That it is there does not make it good.
    with pytest.raises(InputError, match="under the floor"):
        main([*arguments, "--strict-recall"])
    assert main([*arguments, "--strict-recall", "--recall-floor", "0.01"]) == 0


def test_factory_by_size() -> None:
    assert resolve_factory("auto", 50_000) == "Flat"
    assert resolve_factory("auto", 1_000_000) == "IVF4096,SQfp16"
    assert resolve_factory("auto", 10_000_000) == "OPQ64,IVF16384,PQ64"
    assert (
        resolve_factory("auto", 10_000_000, 1024) == "OPQ64,IVF8192,PQ64"
    )  # of lists as many as the training sample suffices for
    assert resolve_factory("auto", 10_000_000, 100) == "OPQ50,IVF16384,PQ50"  # codes must divide the key
    assert resolve_factory("HNSW32", 10) == "HNSW32"


def test_another_memory_is_refused_with_both_hashes(tmp_path: Path, memory_dir: Path, store: MemoryStore) -> None:
    other = write_memory(tmp_path / "memory", random_memory(200, seed=8))
    build_index(other, tmp_path / "index", num_queries=0)
    with pytest.raises(InputError) as caught:
        MemoryIndex.open(tmp_path / "index", store)
    assert store.hash in str(caught.value)
    assert MemoryStore.open(other).hash in str(caught.value)


def test_bad_queries_are_refused(index: MemoryIndex) -> None:
    with pytest.raises(InputError, match=r"expected \[B, 2, 12\]"):
        index.search(np.zeros((1, M, D + 1), np.float32), 3, FIRST_LEVEL)
    with pytest.raises(InputError, match="k ≤ first_level"):
        index.search(random_memory(1), 30, first_level=20)


def test_damage_is_refused(tmp_path: Path) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(5))
    build_index(memory, tmp_path / "index")
    file = tmp_path / "index" / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(InputError, match="make the INDEX again"):
        MemoryIndex.open(tmp_path / "index", MemoryStore.open(memory))
    file.write_bytes(bytes(len(whole)))
    with pytest.raises(InputError, match="not readable as a FAISS index"):
        MemoryIndex.open(tmp_path / "index", MemoryStore.open(memory))


def test_a_bad_factory_is_refused(tmp_path: Path, memory_dir: Path) -> None:
    with pytest.raises(InputError, match="choose another, or auto"):
        build_index(memory_dir, tmp_path / "index", "Nonsense7")
    with pytest.raises(InputError, match="choose another, or auto"):
        build_index(memory_dir, tmp_path / "index", "IVF4096,Flat")


def test_command_line(tmp_path: Path, memory_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--memory", str(memory_dir), "--output", str(tmp_path / "index"), "--queries", "10", "--quiet"]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "index").exists()
    assert main(arguments) == 0
    manifest = read_manifest(tmp_path / "index", "INDEX")
    assert manifest["measured"]["recall_at_10"] == 1
    assert "INDEX of 200 rows, Flat" in capsys.readouterr().out
    before = (tmp_path / "index" / FILE).stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "index" / FILE).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "-1"], "--seed is -1; expected 0 or more"),
        (["--measure-gib", "nan"], "--measure-gib is nan; Input should be a finite number"),
        (["--measure-gib", "0"], "--measure-gib is 0.0; expected more than 0"),
        (["--measure-gib", "-1"], "--measure-gib is -1.0; expected more than 0"),
        (["--measure-gib", "inf"], "--measure-gib is inf; Input should be a finite number"),
        (["--recall-floor", "5"], "--recall-floor is 5.0; expected 1 or less"),
        (["--recall-floor", "nan"], "--recall-floor is nan; Input should be a finite number"),
        (["--factory", "IDMap,Flat"], "factory 'IDMap,Flat': IDMap can't be used"),
        (["--factory", "IDMap2,Flat"], "factory 'IDMap2,Flat': IDMap2 can't be used"),
        (["--factory", "NSG16,Flat"], "factory 'NSG16,Flat': NSG16 can't be used"),
        (["--factory", "IVF4_NSG8,Flat"], "factory 'IVF4_NSG8,Flat' for 200 keys of 24 numbers: FAISS says"),
        (["--factory", "IVF4,Flat", "--probes", "99"], "probes 99: factory 'IVF4,Flat' has 4 inverted lists"),
        (["--probes", "2"], "probes 2: factory 'Flat' has no inverted lists"),
        (["--queries", "0", "--strict-recall"], "--strict-recall with --queries 0: recall is not measured"),
        (["--first-level", "1"], "--first-level 1; expected at least 10, as recall@10 is measured"),
    ],
)
def test_bad_flags_are_reported_in_one_line(tmp_path: Path, memory_dir: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        main(["--memory", str(memory_dir), "--output", str(tmp_path / "index"), "--quiet", *flags])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_a_recall_just_under_the_floor_is_distinguished_from_it() -> None:
    measured = {"recall_at_10": 0.8999609375, "first_level": 200, "num_queries": 64, "exact": True}
    assert "recall@10 is 0.89996 with" in recall_warning("here", measured, 0.9)
    assert "under the floor of 0.90000" in recall_warning("here", measured, 0.9)
    assert "recall@10 is 0.700 with" in recall_warning("here", measured | {"recall_at_10": 0.7}, 0.9)
    assert not recall_warning("here", measured | {"recall_at_10": 0.9}, 0.9)


def test_first_level_is_reported_as_it_was_searched_with(tmp_path: Path, memory_dir: Path) -> None:
    assert build_index(memory_dir, tmp_path / "index", first_level=1, num_queries=8)["measured"]["first_level"] == 10


def test_the_next_versions_index_takes_over_what_this_one_was_asked_for(tmp_path: Path, memory_dir: Path) -> None:
    arguments = [
        "--memory",
        str(memory_dir),
        "--output",
        str(tmp_path / "index"),
        "--factory",
        "IVF16,Flat",
        "--probes",
        "16",
        "--quiet",
    ]
    assert main([*arguments, "--recall-floor", "0.8"]) == 0
    carried = {"factory": "IVF16,Flat", "probes": 16, "recall_floor": 0.8}
    assert (
        next_settings(str(tmp_path / "index"), "auto")
        == next_settings(str(tmp_path / "index"), "IVF16,Flat")
        == carried
    )
    # Another kind has other lists.
    assert next_settings(str(tmp_path / "index"), "IVF8,Flat") == {
        "factory": "IVF8,Flat",
        "probes": 0,
        "recall_floor": 0.8,
    }
    assert next_settings("", "auto") == {"factory": "auto"}
    # The floor is the one that was last asked for, and no part of what the INDEX is.
    hash, file = manifest_hash(tmp_path / "index"), (tmp_path / "index" / FILE).stat().st_mtime_ns
    assert main([*arguments, "--recall-floor", "1"]) == 0
    assert next_settings(str(tmp_path / "index"), "auto")["recall_floor"] == 1
    assert (manifest_hash(tmp_path / "index"), (tmp_path / "index" / FILE).stat().st_mtime_ns) == (hash, file)


def test_a_memory_with_a_flipped_byte_is_not_indexed(tmp_path: Path) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(20))
    file = memory / shard_name(1, 3) / "memory.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    arguments = ["--memory", str(memory), "--output", str(tmp_path / "index")]
    with pytest.raises(InputError, match=f"{shard_name(1, 3)}/memory.safetensors: its sha256 is not the manifest's"):
        main(arguments)
    assert not (tmp_path / "index" / "manifest.json").exists()
    assert main([*arguments, "--no-verify"]) == 0


def test_an_output_that_cannot_be_written_is_reported_before_any_work(tmp_path: Path, memory_dir: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/index: cannot be written"):
        main(["--memory", str(memory_dir), "--output", str(tmp_path / "file" / "index")])


def test_help_says_what_recall_is_measured_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "rows of the INDEX itself as queries: each one's memory plus Gaussian noise of half its length" in output
    assert "No row is held back" in output
    # The number that the words state.
    assert Measurement(FIRST_LEVEL).noise == 0.5
