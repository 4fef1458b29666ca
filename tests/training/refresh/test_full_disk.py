"""A disk that is full costs a refresh, a run state, never the run: figures wait until there is room again."""

import errno
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clara.config.refresh import Refresh
from clara.errors import InputError
from clara.storage.folders import atomic_write
from clara.storage.manifest import MANIFEST
from tests.helpers.artefacts import verify
from tests.helpers.disk import SmallDisk, full_disk, small_disk
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.lines import Lines, read
from training.refresh.attempts import Attempts, lost_tries
from training.refresh.job import RefreshError, RefreshJob, RefreshResult
from training.refresh.version import Pending

STEPS = 12
RUN: dict[str, object] = {
    "joint__train_compressor": "true",
    "joint__steps": STEPS,
    "joint__refresh__policy": "full",
    "joint__refresh__start_step": 2,
    "joint__refresh__every_steps": 8,
    "joint__refresh__switch": "asap",
    "joint__refresh__max_attempts": 2,
}


# --- lines that wait -------------------------------------------------------------------------------------------------


def test_lines_wait_for_room_and_none_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    lines.add({"step": 1, "loss": 0.5})
    one = path.stat().st_size
    # Room for two and a half lines: the third is cut by the disk.
    with full_disk(int(2.5 * one)), caplog.at_level(logging.INFO):
        for step in (2, 3, 4):
            lines.add({"step": step, "loss": 0.5})
        assert path.stat().st_size == 2 * one
        with pytest.raises(
            InputError,
            match=r"metrics\.jsonl: 2 lines cannot be written \(File too large\); make room, and run the same",
        ):
            lines.finish()
    assert caplog.text.count("cannot be written (File too large); what belongs there is kept") == 1
    with caplog.at_level(logging.INFO):
        lines.add({"step": 5, "loss": 0.5})
    assert "written again, with 2 lines that were kept" in caplog.text
    lines.finish()
    assert path.read_text().splitlines() == [json.dumps({"step": step, "loss": 0.5}) for step in (1, 2, 3, 4, 5)]


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    Lines(path).add({"step": 2, "loss": 2.0})
    assert read(path) == {1: {"loss": 1.0}, 2: {"loss": 2.0}}


def test_a_device_without_room_and_then_a_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    lines = Lines(path)
    lines.add({"step": 1})
    with pytest.raises(InputError, match="No space left on device"):
        lines.finish()
    path.unlink()
    lines.finish()
    assert list(read(path)) == [1]


def test_what_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    with full_disk(4096), pytest.raises(InputError, match="cannot be written"):
        atomic_write(tmp_path / "state.json", bytes(10_000))
    assert not list(tmp_path.iterdir())


# --- tries that cannot begin, or be noted ----------------------------------------------------------------------------


class NoRoom(Inline):
    """The job's file finds no room, as for `ProcessWorker`, the first times."""

    def __init__(self, failing: int, error: Exception) -> None:
        self.failing, self.error = failing, error

    def start(self, job: RefreshJob, log: Path) -> Inline:
        self.failing -= 1
        if self.failing >= 0:
            raise self.error
        return super().start(job, log)


def job_of(world: World, output: Path) -> RefreshJob:
    return RefreshJob(
        checkpoint=str(world.checkpoint),
        backbone="",
        parent=str(world.memory),
        memory=str(output / "memory-v1"),
        index=str(output / "index-v1"),
        factory="Flat",
        first_level=20,
        batch_tokens=1024,
        threads=1,
    )


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), InputError("job.json: cannot be written"), RefreshError("gone")],
)
def test_a_try_that_cannot_begin_is_a_failed_try(world: World, tmp_path: Path, error: Exception) -> None:
    run = tmp_path / "run-1"
    run.mkdir()
    tries = Attempts(Refresh(policy="full", max_attempts=2), run, NoRoom(1, error))
    tries.begin(Pending(1, 0), job_of(world, tmp_path))
    assert tries.poll(wait=True, timeout_seconds=60) == 1
    tries = Attempts(Refresh(policy="full", max_attempts=2), run, NoRoom(2, error))
    tries.begin(Pending(1, 0), job_of(world, tmp_path))
    assert tries.poll(wait=True, timeout_seconds=60) == -1
    assert tries.why == str(error)
    assert [(line["number"], line["try"], line["why"]) for line in lost_tries(run)] == [
        (1, 1, str(error)),
        (1, 1, str(error)),
        (1, 2, str(error)),
    ]


class Unnoted(Inline):
    """The first time that it is ready, nothing can be written where that is to be noted."""

    def __init__(self, note: Path) -> None:
        self._note, self.ready = note, 0

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        self.ready += 1
        if self.ready == 1:
            self._note.mkdir()
        return super().result(timeout_seconds)


def test_a_version_that_cannot_be_noted_is_a_failed_try(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run-1"
    run.mkdir()
    note = run / "refresh-v1.json"
    tries = Attempts(Refresh(policy="full", max_attempts=3), run, Unnoted(note))
    tries.begin(Pending(1, 0), job_of(world, tmp_path))
    assert tries.poll(wait=False, timeout_seconds=0.0) == 0
    assert "cannot be written" in tries.why
    # Nor can the second try begin. With room again, the third is ready at once: what the first made is whole.
    note.rmdir()
    assert tries.poll(wait=True, timeout_seconds=60) == 1
    assert [line["try"] for line in lost_tries(run)] == [1, 2]
    assert json.loads(note.read_text())["tries"] == 3
    assert (tmp_path / "memory-v1" / MANIFEST).is_file()


def test_one_that_is_whole_and_given_up_is_deleted_too(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run-1"
    run.mkdir()
    tries = Attempts(Refresh(policy="full", max_attempts=1), run, Unnoted(run / "refresh-v1.json"))
    tries.begin(Pending(1, 0), job_of(world, tmp_path))
    assert tries.poll(wait=True, timeout_seconds=60) == -1
    assert not (tmp_path / "memory-v1").exists()
    assert not (tmp_path / "index-v1").exists()


# --- a whole run -----------------------------------------------------------------------------------------------------


class Filling(Inline):
    """The disk is full once the first version has its first shard."""

    disk: SmallDisk
    starts = 0

    def start(self, job: RefreshJob, log: Path) -> Inline:
        type(self).starts += 1
        if type(self).starts == 1:
            (Path(job.memory) / "shard-00000-of-00002").mkdir(parents=True)
            atomic_write(Path(job.memory) / "shard-00000-of-00002/memory.safetensors", bytes(1_000_000))
            self.disk.fill()
        return super().start(job, log)


class FreedAfter(logging.Handler):
    """Frees a disk when all of it has been said."""

    def __init__(self, disk: SmallDisk, *said: str) -> None:
        super().__init__()
        self._disk, self._left = disk, {*said}

    def emit(self, record: logging.LogRecord) -> None:
        self._left -= {said for said in self._left if said in record.getMessage()}
        if not self._left:
            self._disk.free()


class FilledAfter(logging.Handler):
    """Fills a disk when something was said."""

    def __init__(self, disk: SmallDisk, said: str) -> None:
        super().__init__()
        self._disk, self._said = disk, said

    def emit(self, record: logging.LogRecord) -> None:
        if self._said in record.getMessage():
            self._disk.fill()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "6m") as found:
        yield found


def train(
    world: World, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, handlers: list[logging.Handler], **values: object
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Filling)
    monkeypatch.setattr(Filling, "disk", disk, raising=False)
    monkeypatch.setattr(Filling, "starts", 0)
    root = logging.getLogger("training")
    try:
        for handler in handlers:
            root.addHandler(handler)
        assert joint.main(["--launcher", "local", *world.sets(disk.root, **RUN | values)]) == 0
    finally:
        for handler in handlers:
            root.removeHandler(handler)


def test_a_run_on_a_disk_that_is_full_for_a_while_has_all_its_figures(
    world: World, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handlers: list[logging.Handler] = [
        # What the refresh left is deleted, and something else takes its room.
        FilledAfter(disk, "version 1 is given up"),
        FreedAfter(disk, "run state: not written", "metrics.jsonl: cannot be written"),
    ]
    with caplog.at_level(logging.INFO):
        train(world, disk, monkeypatch, handlers)
    said = caplog.text
    assert "version 1 is given up; training stays on version 0" in said
    assert "metrics.jsonl: cannot be written (No space left on device); what belongs there is kept" in said
    assert "run state: not written" in said
    assert "metrics.jsonl: written again" in said
    (run,) = disk.root.glob("run-*")
    metrics = read(run / "metrics.jsonl")
    assert list(metrics) == list(range(1, STEPS + 1))
    report = json.loads((disk.root / "report.json").read_text())
    # With room again, the next snapshot is taken, and its version made.
    assert {v["used_memory_version"] for v in metrics.values()} == {0, 1}
    assert [line["number"] for line in lost_tries(run)] == [1, 1]
    assert report["steps"] == STEPS
    verify(disk.root / "checkpoint")
    verify(disk.root / "memory-v1")


def test_what_a_refresh_that_is_given_up_took_is_free_for_the_run_state_and_the_checkpoint(
    world: World, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(world, disk, monkeypatch, [], joint__refresh__every_steps=0, joint__steps=5, joint__checkpoint_every=4)
    assert "version 1 is given up" in caplog.text
    for folder in ("memory-v1", "index-v1"):
        assert not (disk.root / folder).exists()
    verify(disk.root / "checkpoint")
    (run,) = disk.root.glob("run-*")
    assert list(read(run / "metrics.jsonl")) == [1, 2, 3, 4, 5]
    assert list(run.glob("run_state/step-*/state.json"))


def test_figures_that_never_find_room_are_reported_at_the_end(
    world: World, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    refill = FilledAfter(disk, "version 1 is given up")
    with pytest.raises(
        InputError, match=r"jsonl: \d+ lines cannot be written \(No space left on device\); make room, and run the same"
    ):
        train(world, disk, monkeypatch, [refill], joint__refresh__every_steps=0)
    assert not (disk.root / "checkpoint" / MANIFEST).exists()
    disk.free()
    monkeypatch.setattr(Filling, "start", Inline.start)
    train(world, disk, monkeypatch, [], joint__refresh__every_steps=0)
    (run,) = disk.root.glob("run-*")
    assert list(read(run / "metrics.jsonl")) == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ranks_on_a_disk_that_is_full_for_a_while(world: World, disk: SmallDisk) -> None:
    steps = 30
    values = RUN | {
        "launch__launcher": "ray",
        "launch__max_failures": 0,
        "joint__steps": steps,
        "joint__checkpoint_every": 1,
        "joint__refresh__num_cpus": 0.5,
        "joint__refresh__every_steps": 3,
        "joint__refresh__wait_seconds": 600,
        "joint__refresh__final": "true",
    }
    command = [sys.executable, joint.__file__, *world.sets(disk.root, **values)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_for(there: Callable[[], object]) -> None:
        while not there():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)

    wait_for(lambda: [*disk.root.glob("run-*/snapshot-v1/manifest.json")])
    (run,) = disk.root.glob("run-*")
    full_from = max([0, *read(run / "metrics.jsonl")])

    def reached_while_full() -> bool:
        disk.fill()  # again and again, as what is given up is deleted
        # Directories can still be made, and show how far the ranks are while neither metrics nor logs can be
        # written.
        return (run / f"run_state/step-{full_from + 12:08d}").is_dir()

    wait_for(reached_while_full)
    written = max(read(run / "metrics.jsonl"))
    disk.free()
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert written < full_from + 11
    log = (run / "log-rank0.txt").read_text()
    assert "metrics.jsonl: written again" in log
    assert "resuming" not in log
    assert list(read(run / "metrics.jsonl")) == list(range(1, steps + 1))
    report = json.loads((disk.root / "report.json").read_text())
    assert report["memory_lag_steps"] == 0
    verify(disk.root / "checkpoint")
    verify(report["memory"])
