"""The actors that refreshes run in under Ray: one that is ended is gone by then, and the next refresh has another."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.joint_world import World
from tests.helpers.ray_cluster import below, local_ray
from training.refresh.job import RefreshError, RefreshResult, run_job
from training.refresh.ray_actors import RayHandle, RayWorker

TIMEOUT_SECONDS = 600
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_SECONDS)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=1):
        yield


def refreshers(doing: str = "") -> list[psutil.Process]:
    return below(psutil.Process(), f"ray::Refresher{doing}")


def alive(process: psutil.Process) -> bool:
    """Whether it can still write: a zombie can't."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def begun(handle: RayHandle) -> psutil.Process:
    """The process that does it."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (found := refreshers(".run")):
        assert handle.result(0.0) is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found[0]


def result(handle: RayHandle) -> RefreshResult:
    found = handle.result(TIMEOUT_SECONDS)
    assert found is not None
    return found


def test_one_that_is_ended_is_gone_and_the_next_has_another(cluster: None, world: World, tmp_path: Path) -> None:
    worker = RayWorker(1.0, 0.0)
    for number in range(3):
        handle = worker.start(world.refresh_job(tmp_path / f"ended-{number}"), tmp_path / "log")
        process = begun(handle)
        began = time.monotonic()
        handle.stop()
        assert not alive(process)
        assert time.monotonic() - began < 9
    with pytest.raises(RefreshError, match="nothing"):
        result(worker.start(world.refresh_job(tmp_path / "failed", checkpoint=tmp_path / "nothing"), tmp_path / "log"))
    made, alone = (
        result(worker.start(world.refresh_job(tmp_path / "made"), tmp_path / "log")),
        run_job(world.refresh_job(tmp_path / "alone")),
    )
    assert (made.memory_hash, made.index_hash) == (alone.memory_hash, alone.index_hash)
