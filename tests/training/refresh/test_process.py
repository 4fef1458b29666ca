"""The process that refreshes run in: kept from one to the next, replaced when it is gone, never left behind."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clara.memory.store import MemoryStore
from clara.storage.manifest import manifest_hash
from tests.helpers import warm
from tests.helpers.joint_world import World
from training.refresh.job import RefreshError, RefreshJob, RefreshResult, run_job
from training.refresh.process import ProcessHandle, ProcessWorker

TIMEOUT_SECONDS = 600
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_SECONDS)]


@pytest.fixture
def worker() -> Iterator[ProcessWorker]:
    started = ProcessWorker()
    yield started
    started.close()


def result(handle: ProcessHandle) -> RefreshResult:
    found = handle.result(TIMEOUT_SECONDS)
    assert found is not None
    return found


def test_one_process_does_refresh_after_refresh_and_is_replaced_when_gone(
    world: World, tmp_path: Path, worker: ProcessWorker
) -> None:
    first = worker.start(world.refresh_job(tmp_path / "1"), tmp_path / "1.log")
    assert first.result(0.0) is None
    made = result(first)

    second = worker.start(world.refresh_job(tmp_path / "2"), tmp_path / "2.log")
    again = result(second)
    assert second.process.pid == first.process.pid
    # What it holds from the first job is no part of the second: the same bytes as in a process that did nothing else.
    alone = run_job(world.refresh_job(tmp_path / "alone"))
    assert made.memory_hash == again.memory_hash == alone.memory_hash == manifest_hash(tmp_path / "2/memory")
    assert made.index_hash == again.index_hash == alone.index_hash

    # Killed between two refreshes: the next has another process, and no try is lost.
    first.process.kill()
    first.process.wait()
    third = worker.start(world.refresh_job(tmp_path / "3"), tmp_path / "3.log")
    assert result(third).memory_hash == made.memory_hash
    assert third.process.pid != first.process.pid

    # A failed job logs the reason in its own log, and the next job is done.
    broken = dataclasses.replace(world.refresh_job(tmp_path / "4"), checkpoint=str(tmp_path / "nothing"))
    failed = worker.start(broken, tmp_path / "4.log")
    with pytest.raises(RefreshError, match=r"exit status 2; error: .*nothing.*\(log: .*4\.log\)"):
        failed.result(TIMEOUT_SECONDS)
    assert "error" not in (tmp_path / "3.log").read_text()
    last = worker.start(world.refresh_job(tmp_path / "4"), tmp_path / "4.log")
    assert result(last).rows == len(MemoryStore.open(world.memory))
    worker.close()
    assert last.process.returncode == -signal.SIGKILL


def parent(job: RefreshJob, log: Path) -> None:
    handle = ProcessWorker().start(job, log)
    print(handle.process.pid, flush=True)
    time.sleep(TIMEOUT_SECONDS)


def gone(process: psutil.Process) -> bool:
    """Whether it has ended; where orphans are reaped late, it is a zombie for a while."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_ends_with_a_parent_that_is_killed(world: World, tmp_path: Path) -> None:
    deadline, said = time.monotonic() + TIMEOUT_SECONDS, tmp_path / "said"
    process = warm.start(parent, world.refresh_job(tmp_path), tmp_path / "log", said=said)
    while not (said.exists() and said.read_text().endswith("\n")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child = psutil.Process(int(said.read_text().splitlines()[-1]))
    warm.kill(process)
    while not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)
