"""Search servers: rows, scores and order equal the INDEX itself, for any number of servers; lost servers."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from clara.config.model import Score
from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.factory import empty_index
from clara.index.ivf_file import ids_of
from clara.index.keys import IndexKeys
from clara.index.search import MemoryIndex
from clara.index.share import open_share, why_whole
from clara.memory.store import MemoryStore
from clara.storage.manifest import manifest_hash, read_manifest
from tests.helpers import ranks
from tests.helpers.joint_world import World
from tests.helpers.memories import FIRST_LEVEL, M, random_memory, write_memory
from tests.helpers.ray_cluster import local_ray
from training import joint
from training.launch.search_servers import SearchLostError, SearchServer, Servers
from training.launch.served_index import ServedIndex, served

ROWS, SAME = 900, 60
FACTORIES = ["Flat", "IVF16,SQfp16", "IVF8,PQ6x4"]
TIMEOUT_SECONDS = 900
OTHER = [Score(centred=True), Score(pooling="slot_mean"), Score(pooling="slot_mean", centred=True)]


@pytest.fixture(scope="module")
def memory_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Some rows are all the same: their scores are equal, and their order by id.
    memory = np.concatenate([np.repeat(random_memory(1), SAME, axis=0), random_memory(ROWS - SAME, seed=2)])
    return write_memory(tmp_path_factory.mktemp("memory") / "memory", memory, num_shards=6, key_size=6 * M)


@pytest.fixture(scope="module")
def indices(memory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("indices")
    for factory in FACTORIES:
        build_index(memory_dir, folder / factory, factory, num_queries=0)
    return {factory: folder / factory for factory in FACTORIES}


class InProcess(Servers):
    """The same servers without processes."""

    def __init__(self, memory: Path, index: Path, number: int) -> None:
        self._settings = Retrieval(search_shards=number)
        self._servers = [SearchServer(str(memory), str(index), n, number, 1) for n in range(number)]

    def ask(self, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        return {number: getattr(self._servers[number], method)(*given) for number, given in arguments.items()}


def equal(one: ServedIndex, other: MemoryIndex) -> None:
    """Same rows, bits of scores and order: with ties, exclusions, in any batch, with L that cuts among equal scores."""
    query = np.concatenate([random_memory(1), random_memory(11, seed=5)])
    for k, level in ((5, 5), (10, 40), (70, 90), (20, ROWS)):
        first, second = one.search(query, k, first_level=level), other.search(query, k, first_level=level)
        assert np.array_equal(first[0], second[0])
        assert np.array_equal(first[1], second[1])
    barred = [set(first[0][n, :3].tolist()) for n in range(len(query))]
    first, second = (
        one.search(query, 5, first_level=9, exclude=barred),
        other.search(query, 5, first_level=9, exclude=barred),
    )
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    alone = [one.search(query[n : n + 1], 10, first_level=40) for n in range(len(query))]
    assert np.array_equal(np.concatenate([a[0] for a in alone]), other.search(query, 10, first_level=40)[0])
    barred[1], query[2] = set(other.store.row_ids.tolist()), np.nan
    first, second = (each.search(query, 5, FIRST_LEVEL, barred) for each in (one, other))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert (first[0][1:3] == -1).all()
    rows = other.store.row_ids[[3, 700, 3, 41]]
    assert np.array_equal(one.memory(rows), other.store.memory(rows))


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_any_number_of_shares_finds_what_the_index_finds(
    memory_dir: Path, indices: dict[str, Path], factory: str, number: int
) -> None:
    store = MemoryStore.open(memory_dir)
    whole = MemoryIndex.open(indices[factory], store)
    equal(ServedIndex(store, InProcess(memory_dir, indices[factory], number), None), whole)
    shares = [ids_of(open_share(indices[factory], store, n, number)._index) for n in range(number)]
    assert np.array_equal(np.sort(np.concatenate(shares)), store.row_ids)
    assert all((ids % number == n).all() for n, ids in enumerate(shares))


@pytest.mark.parametrize("score", OTHER, ids=str)
@pytest.mark.parametrize("factory", ["auto", "IVF16,SQfp16"])
@pytest.mark.parametrize("exact_rows", [0, ROWS])
def test_shares_of_an_index_of_another_score_find_what_it_finds(
    memory_dir: Path, tmp_path: Path, score: Score, factory: str, exact_rows: int
) -> None:
    build_index(memory_dir, tmp_path / "index", factory, num_queries=0, score=score)
    store = MemoryStore.open(memory_dir)
    whole = MemoryIndex.open(tmp_path / "index", store, score, exact_rows)
    for number in (1, 3):
        equal(ServedIndex(store, InProcess(memory_dir, tmp_path / "index", number), None, score, exact_rows), whole)


def test_equal_rows_are_among_what_was_compared(memory_dir: Path, indices: dict[str, Path]) -> None:
    store = MemoryStore.open(memory_dir)
    rows, scores = MemoryIndex.open(indices["Flat"], store).search(random_memory(1), SAME, first_level=SAME)
    assert len({*scores[0].tolist()}) == 1
    assert rows[0].tolist() == sorted(rows[0].tolist())


NOT_SHARED = {
    "HNSW8": r"its rows are linked to each other \(IndexHNSWFlat\)",
    "PCA8,HNSW8": r"its rows are linked to each other \(IndexHNSWFlat\)",
    "PQ6x4fs": r"its codes are stored in blocks of many rows each \(IndexPQFastScan\)",
    "IVF4,PQ6x4fs": r"its codes are stored in blocks of many rows each \(IndexIVFPQFastScan\)",
    "SQ8": "only plain keys and plain inverted lists are taken apart row by row, and this is IndexScalarQuantizer",
    "PCA8,Flat": "only plain keys and plain inverted lists are taken apart row by row, and this is IndexPreTransform",
}


@pytest.mark.parametrize("factory", NOT_SHARED)
def test_the_kinds_that_are_not_shared_out(memory_dir: Path, tmp_path: Path, factory: str) -> None:
    build_index(memory_dir, tmp_path / "index", factory, num_queries=0)
    store = MemoryStore.open(memory_dir)
    with pytest.raises(InputError, match=rf"can't be shared out.*: {NOT_SHARED[factory]}; .*search_shards=0"):
        open_share(tmp_path / "index", store, 0, 2)
    # As much is known before anything is built.
    assert re.search(NOT_SHARED[factory], why_whole(empty_index(IndexKeys(store), factory)))


@pytest.mark.parametrize("factory", [*FACTORIES, "SQfp16", "OPQ6,IVF4,PQ6x4", "IVF4_HNSW8,Flat"])
def test_the_kinds_that_are(memory_dir: Path, factory: str) -> None:
    assert why_whole(empty_index(IndexKeys(MemoryStore.open(memory_dir)), factory)) == ""


def test_servers_need_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["stage=joint", "launch.launcher=local", "retrieval.search_shards=2", "joint.from_index=0"]
    sets += [f"{name}={tmp_path}" for name in ("output", "checkpoint", "questions", "memory")]
    with pytest.raises(InputError, match=r"search_shards is 2, launch\.launcher 'local'"):
        joint.main([part for value in sets for part in ("--set", value)])


class Stuck(Servers):
    """Servers of which a call into Ray does not come back."""

    def __init__(self, index: Path, settings: Retrieval) -> None:
        super().__init__("", str(index), settings, owner=False)
        self.release = threading.Event()

    def begin(self, number: int, method: str, arguments: tuple[Any, ...]) -> Any:
        self.release.wait()


def test_a_call_that_does_not_return_is_reported_within_the_time_limit(indices: dict[str, Path]) -> None:
    servers = Stuck(indices["Flat"], Retrieval(search_shards=2, search_seconds=0.5, search_cpus=1.5))
    began = time.monotonic()
    with pytest.raises(
        SearchLostError,
        match=r"no answer to memory within retrieval\.search_seconds = 0\.5 from search-\w+-1-of-2 over .*",
    ) as caught:
        servers.ask("memory", {1: ()})
    assert 0.5 <= time.monotonic() - began < 20
    assert "room for 2 servers of retrieval.search_cpus = 1.5" in str(caught.value)
    # Nothing of it stays behind once the call does come back.
    servers.release.set()
    for asking in [thread for thread in threading.enumerate() if thread.name == "search-memory"]:
        asking.join(60)
        assert not asking.is_alive()


# --- under Ray -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=4):
        yield


def open_servers(
    memory_dir: Path, index: Path, *, owner: bool = True, **settings: Any
) -> tuple[ServedIndex, MemoryIndex]:
    store = MemoryStore.open(memory_dir)
    found = served(Retrieval(search_shards=3, **settings), owner=owner)(str(index), store)
    assert isinstance(found, ServedIndex)
    return found, MemoryIndex.open(index, store)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_servers_that_are_killed_are_started_again(cluster: None, memory_dir: Path, indices: dict[str, Path]) -> None:
    index, whole = open_servers(memory_dir, indices["IVF16,SQfp16"], search_restarts=1)
    equal(index, whole)
    other, _ = open_servers(memory_dir, indices["IVF16,SQfp16"], owner=False)  # another rank finds them by name
    before = other.servers.ask("process", {n: () for n in range(3)})
    # Ray replaces the first server that dies, rank 0 the second.
    for _ in range(2):
        process = index.servers.ask("process", {1: ()})[1]
        os.kill(process, signal.SIGKILL)
        began = time.monotonic()
        equal(index, whole)
        assert time.monotonic() - began < 300
        assert index.servers.ask("process", {1: ()})[1] != process
    equal(other, whole)
    after = other.servers.ask("process", {n: () for n in range(3)})
    assert (before[0], before[2]) == (after[0], after[2])
    index.servers.stop()


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_rank_reaches_a_server_that_rank_0_never_asks(
    cluster: None, memory_dir: Path, indices: dict[str, Path]
) -> None:
    index, whole = open_servers(memory_dir, indices["IVF8,PQ6x4"])
    other, _ = open_servers(memory_dir, indices["IVF8,PQ6x4"], owner=False, search_seconds=120.0)
    for rank, number in ((index, 0), (other, 2)):
        rows = whole.store.row_ids[whole.store.row_ids % 3 == number][:4]
        assert np.array_equal(rank.memory(rows), whole.memory(rows))
    index.servers.stop()


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_server_that_stays_away_is_reported_within_the_time_limit(
    cluster: None, memory_dir: Path, indices: dict[str, Path]
) -> None:
    index, _ = open_servers(memory_dir, indices["Flat"])
    index.servers.ask("process", {n: () for n in range(3)})
    other, _ = open_servers(memory_dir, indices["Flat"], owner=False, search_seconds=8.0)
    index.servers.stop()  # for good, and the rank that would start them again does not ask
    began = time.monotonic()
    with pytest.raises(
        SearchLostError, match=r"no answer to best_keys within retrieval.search_seconds = 8 from search-\w+-0-of-3"
    ):
        other.search(random_memory(1), 5, FIRST_LEVEL)
    assert 8 <= time.monotonic() - began < 60
    # One that hangs is no better.
    index, _ = open_servers(memory_dir, indices["Flat"], search_seconds=120.0)
    process = index.servers.ask("process", {0: ()})[0]
    os.kill(process, signal.SIGSTOP)
    try:
        slow, _ = open_servers(memory_dir, indices["Flat"], owner=False, search_seconds=8.0)
        with pytest.raises(SearchLostError, match="starting, or busy, or its node is lost"):
            slow.search(random_memory(1), 5, FIRST_LEVEL)
    finally:
        os.kill(process, signal.SIGCONT)
        index.servers.stop()


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_the_caller_reports_what_is_wrong_with_an_index(cluster: None, memory_dir: Path, tmp_path: Path) -> None:
    build_index(memory_dir, tmp_path / "index", "HNSW8", num_queries=0)
    index, _ = open_servers(memory_dir, tmp_path / "index")
    with pytest.raises(InputError, match="can't be shared out"):
        index.search(random_memory(1), 5, FIRST_LEVEL)
    index.servers.stop()


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_SECONDS)
def test_a_run_with_servers_is_the_run_without(world: World, tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "joint__steps": 5,
        "joint__train_compressor": "true",
        "joint__refresh__policy": "incremental",
        "joint__refresh__num_cpus": 0.5,
        "joint__refresh__switch": "fixed",
        "joint__refresh__start_step": 1,
        "joint__refresh__delta_steps": 2,
        "joint__right_memory_share": 0.5,
        "joint__refresh__rows": 12,
        "retrieval__exact_rows": 0,  # both levels ask the servers
    }
    # Ray is started once: a run of the same ranks has the same bits without it.
    ranks.train(2, [world.sets(tmp_path / "without", **settings)[1::2]], tmp_path)
    served_sets = world.sets(tmp_path / "with", **settings, retrieval__search_shards=3)
    command = [sys.executable, joint.__file__, *served_sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stderr
    weights = []
    for output in (tmp_path / "without", tmp_path / "with"):
        report = json.loads((output / "report.json").read_text())
        assert [span["version"] for span in report["versions_by_step"]] == [0, 1]
        roles = read_manifest(output / "checkpoint")["roles"]
        weights.append(
            {role: load_file(output / "checkpoint" / roles[role] / "adapter_model.safetensors") for role in roles}
        )
        assert manifest_hash(report["memory"])
    for role, tensors in weights[0].items():
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, weights[1][role][name], err_msg=f"{role} {name}")
