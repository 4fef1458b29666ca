"""What a run under Ray may wait for, and what a process leaves out of garbage collections."""

import gc
import time
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from clara.config.tree import Config
from training.launch import failures
from training.launch import ray_train as launch


def config(**sections: object) -> Config:
    return Config.model_validate(sections)


def test_a_collective_outlasts_what_one_rank_alone_may_wait_for() -> None:
    # A rank waits an hour for a refresh and gives up; the other, which waits for it at a collective, must not have
    # ended by then.
    refresh = {"refresh": {"wait_seconds": 3600.0}}
    assert launch.collective_seconds(config(joint=refresh)) == 3600 + 900 + 600
    served = {"search_shards": 2, "search_seconds": 1200.5}
    assert launch.collective_seconds(config(joint=refresh, retrieval=served)) == 3600 + 1201 + 900 + 600
    assert launch.collective_seconds(config(joint={"refresh": {"wait_seconds": 0.0}})) == 1800


def test_what_keeps_ranks_from_starting_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    settings = config(output=str(tmp_path), launch={"num_workers": 3, "max_failures": 2, "gpu": True})
    no_room = failures.not_started(ControllerError(WorkerGroupStartupTimeoutError(3)), settings)
    assert "3 ranks found no room on the cluster: their share of its cores and a GPU each, within 600 s" in str(no_room)
    assert "3 times in this run" in str(no_room)
    died = failures.not_started(ControllerError(WorkerGroupStartupFailedError("One of them:\nits node died")), settings)
    assert "3 ranks did not start (its node died), 3 times" in str(died)
    assert failures.not_started(ControllerError(ValueError("ours")), settings) is None
    assert failures.not_started(RuntimeError("another"), settings) is None


def test_a_node_without_memory_is_reported_in_one_line(tmp_path: Path) -> None:
    said = OutOfMemoryError(
        "5 worker(s) were killed.\nMemory on the node (IP: ::1) was 22.68GB used / 23.54GB limit\n..."
    )
    died = ControllerError(RuntimeError("died: node running low on memory, 22.68GB used / 23.54GB limit"))
    for error in (ControllerError(said), WorkerGroupError("ranks died", {1: said}), said, died):
        found = failures.out_of_memory(error, config(output=str(tmp_path)))
        assert "a node ran out of memory (22.68GB used / 23.54GB limit)" in str(found)
        assert "launch.num_workers" in str(found)
    assert "(no figures)" in str(failures.out_of_memory(OutOfMemoryError("no figures"), config(output=str(tmp_path))))
    assert failures.out_of_memory(ControllerError(ValueError("ours")), config(output=str(tmp_path))) is None


def collection_seconds() -> float:
    began = time.process_time()
    gc.collect()
    return time.process_time() - began


def test_a_collection_passes_over_what_lived_before() -> None:
    heap = [[number] for number in range(300_000)]
    before = collection_seconds()
    try:
        launch.keep_heap()
        assert collection_seconds() < before / 10
    finally:
        gc.unfreeze()
    assert len(heap) == 300_000
