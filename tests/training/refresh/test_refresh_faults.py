"""Failed or late refreshes: training continues with its version, says so, and never loads a damaged one."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

import training.refresh.job
from clara.errors import InputError
from tests.helpers.artefacts import verify
from tests.helpers.disk import full_disk
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.lines import read
from training.refresh.attempts import lost_tries
from training.refresh.job import RefreshJob, RefreshResult
from training.refresh.request import RefreshRequests

RUN: dict[str, object] = {
    "joint__train_compressor": "true",
    "joint__steps": 5,
    "joint__refresh__policy": "full",
    "joint__refresh__start_step": 1,
    "joint__refresh__switch": "fixed",
    "joint__refresh__delta_steps": 2,
}
STAYED = [{"version": 0, "first_step": 1, "last_step": 5}]
SWITCHED = [{"version": 0, "first_step": 1, "last_step": 3}, {"version": 1, "first_step": 4, "last_step": 5}]


def train(
    world: World, output: Path, worker: type[Inline], monkeypatch: pytest.MonkeyPatch, **values: object
) -> dict[str, object]:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", worker)
    assert joint.main(["--launcher", "local", *world.sets(output, **RUN | values)]) == 0
    report: dict[str, object] = json.loads((output / "report.json").read_text())
    return report


def nothing_left(output: Path) -> None:
    """Of version 1, given up. Its snapshot stays where a run state was written while it was under way."""
    assert not [*output.glob("memory-v1"), *output.glob("index-v1")]


@pytest.mark.parametrize(("attempts", "spans"), [(1, STAYED), (2, SWITCHED)])
def test_a_corrupt_shard_is_never_used_and_the_next_attempt_repairs_it(
    world: World,
    tmp_path: Path,
    attempts: int,
    spans: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real, damaged = training.refresh.job.build_index, []

    def damage_and_build(memory: str, *arguments: object, **options: object) -> object:
        made = real(memory, *arguments, **options)  # type: ignore[arg-type]
        if not damaged:
            shard = sorted(Path(memory).glob("shard-*/memory.safetensors"))[-1]
            whole = bytearray(shard.read_bytes())
            whole[-1] ^= 1
            shard.write_bytes(whole)
            damaged.append(shard)
        return made

    monkeypatch.setattr(training.refresh.job, "build_index", damage_and_build)
    report = train(world, tmp_path, Inline, monkeypatch, joint__refresh__max_attempts=attempts)
    assert report["versions_by_step"] == spans
    cost = report["refresh_cost"]
    assert (cost["lost_tries"], cost["refreshes"]) == (1, attempts - 1)  # type: ignore[index]
    steps = read(next(tmp_path.glob("run-*")) / "metrics.jsonl").values()
    assert sum(values.get("refresh_lost_seconds", 0.0) for values in steps) == cost["lost_seconds"] > 0  # type: ignore[index]
    for values in (values for values in steps if "refresh_seconds" in values):
        assert values["refresh_tries"] == 2
        assert values["refresh_ready_seconds"] >= values["refresh_seconds"] + cost["lost_seconds"] - 0.1  # type: ignore[index]
        assert values["refresh_compute_share"] > 0
    assert "sha256 is not the manifest's" in caplog.text
    if attempts == 1:
        assert "version 1 is given up; training stays on version 0" in caplog.text
        nothing_left(tmp_path)
        assert report["memory"] == str(world.memory)
    else:
        assert verify(tmp_path / "memory-v1")["counts"]["rows"] == 40


class Full(Inline):
    """The disk is full while it encodes."""

    def start(self, job: RefreshJob, log: Path) -> Inline:
        with full_disk(4096):
            return super().start(job, log)


def test_a_full_disk_leaves_training_on_the_old_version(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report = train(world, tmp_path, Full, monkeypatch, joint__refresh__max_attempts=2)
    assert report["versions_by_step"] == STAYED
    assert caplog.text.count("cannot be written (File too large)") == 2
    assert "version 1 is given up; training stays on version 0" in caplog.text
    nothing_left(tmp_path)


def test_a_snapshot_that_finds_no_room_leaves_training_on_the_old_version(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = RefreshRequests.save_snapshot

    def save_on_a_full_disk(self, *arguments, **options):  # type: ignore[no-untyped-def]
        with full_disk(1024):
            return real(self, *arguments, **options)

    monkeypatch.setattr(RefreshRequests, "save_snapshot", save_on_a_full_disk)
    report = train(world, tmp_path, Inline, monkeypatch)
    assert report["versions_by_step"] == STAYED
    assert "no snapshot for version 1" in caplog.text
    assert not [*tmp_path.glob("run-*/snapshot-v1")]
    assert "cannot be written" in caplog.text


class Impostor(Inline):
    """Reports another hash than that of the files it wrote."""

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        found = super().result(timeout_seconds)
        return found and dataclasses.replace(found, memory_hash="0" * 64)


def test_what_the_job_did_not_make_is_not_switched_to(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report = train(world, tmp_path, Impostor, monkeypatch, joint__refresh__max_attempts=1)
    assert report["versions_by_step"] == STAYED
    assert "something else wrote there" in caplog.text
    nothing_left(tmp_path)


class Late(Inline):
    """Ready at the tenth look; to who waits, the same day."""

    looks = 0

    def start(self, job: RefreshJob, log: Path) -> Inline:
        self.looks = 0
        return super().start(job, log)

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        self.looks += 1
        return super().result(timeout_seconds) if timeout_seconds or self.looks >= 10 else None


@pytest.mark.parametrize(
    ("when_stale", "first_step", "warnings"),
    # Step 5 would lack four updates: who waits, waits ahead of step 4. The tenth look is ahead of step 11; both
    # versions are too old then.
    [("wait", 5, 0), ("warn", 12, 2), ("continue", 12, 0)],
)
def test_a_late_refresh_is_waited_for_or_not(
    world: World,
    tmp_path: Path,
    when_stale: str,
    first_step: int,
    warnings: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values: dict[str, object] = {
        "joint__steps": 12,
        "joint__refresh__every_steps": 3,
        "joint__refresh__switch": "asap",
        "joint__refresh__max_staleness_steps": 3,
        "joint__refresh__when_stale": when_stale,
    }
    report = train(world, tmp_path, Late, monkeypatch, **values)
    spans = report["versions_by_step"]
    assert spans[1]["first_step"] == first_step  # type: ignore[index]
    assert caplog.text.count("more than joint.refresh.max_staleness_steps = 3; training continues") == warnings
    # Slower than its interval: no second one starts beside it, and this is logged.
    assert ("still being made after step 4; no snapshot this time" in caplog.text) == (when_stale != "wait")
    lacking = [v["staleness_steps"] for v in read(next(tmp_path.glob("run-*")) / "metrics.jsonl").values()]
    if when_stale == "wait":
        assert lacking == [0, 1, 2, 3, 3, 1, 2, 3, 1, 2, 3, 1]
    else:
        assert lacking == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]


class Never(Inline):
    """Not ready, however long one waits: its node is gone, and no other has room. What it had made is all there."""

    stopped = 0

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        return None

    def stop(self) -> None:
        type(self).stopped += 1


def test_a_fixed_switch_waits_no_longer_than_it_may(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report = train(world, tmp_path, Never, monkeypatch, joint__refresh__wait_seconds=0.2)
    assert report["versions_by_step"] == STAYED
    assert (
        "version 1 is not ready after 0 s (joint.refresh.wait_seconds) and is given up; training stays on version 0"
        in caplog.text
    )
    assert Never.stopped == 1
    nothing_left(tmp_path)


class Unfinished(Never):
    """Still at its first shard when the run ends."""

    def start(self, job: RefreshJob, log: Path) -> Inline:
        if Path(job.checkpoint).name == "checkpoint":
            return Inline().start(job, log)
        (Path(job.memory) / "shard-00000-of-00002").mkdir(parents=True)
        return self


def test_what_the_last_re_encoding_replaces_is_not_waited_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, began = Unfinished.stopped, time.monotonic()
    values: dict[str, object] = {
        "joint__refresh__switch": "asap",
        "joint__refresh__delta_steps": 0,
        "joint__refresh__wait_seconds": 600,
    }
    report = train(world, tmp_path, Unfinished, monkeypatch, joint__refresh__final="true", **values)
    assert time.monotonic() - began < 300
    assert Unfinished.stopped - before == 1
    (line,) = lost_tries(next(tmp_path.glob("run-*")))
    assert (line["number"], line["why"]) == (1, "ended for the last re-encoding")
    # Under a new number; nothing is left of the cancelled one.
    assert report["memory"] == str(tmp_path / "memory-v2")
    assert not (tmp_path / "memory-v1").exists()
    assert report["memory_lag_steps"] == 0


@pytest.mark.slow
def test_who_has_waited_in_vain_does_not_wait_again_at_every_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values: dict[str, object] = {
        "joint__steps": 8,
        "joint__refresh__switch": "asap",
        "joint__refresh__delta_steps": 0,
        "joint__refresh__max_staleness_steps": 2,
        "joint__refresh__when_stale": "wait",
        "joint__refresh__wait_seconds": 4,  # longer than a busy machine takes for a snapshot
    }
    report = train(world, tmp_path, Never, monkeypatch, **values)
    waited = [
        values["blocked_seconds"] >= 4 for values in read(next(tmp_path.glob("run-*")) / "metrics.jsonl").values()
    ]
    # The fourth step would lack three updates: waited for at the end of the third, once.
    assert waited == [False, False, True, False, False, False, False, False]
    assert caplog.text.count("more than joint.refresh.max_staleness_steps = 2; training continues with it") == 1
    assert report["versions_by_step"] == [{"version": 0, "first_step": 1, "last_step": 8}]


def test_a_refresh_that_hangs_is_ended_and_the_next_snapshot_is_taken(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = Never.stopped
    values: dict[str, object] = {
        "joint__refresh__every_steps": 2,
        "joint__refresh__switch": "asap",
        "joint__refresh__max_seconds": 1e-9,
    }
    report = train(
        world, tmp_path, Never, monkeypatch, joint__refresh__max_attempts=2, joint__refresh__delta_steps=0, **values
    )
    assert report["versions_by_step"] == STAYED
    assert (
        "try 1 of version 1 failed: not ready 1e-09 s after it began (joint.refresh.max_seconds), and ended"
        in caplog.text
    )
    # Snapshots after steps 1, 3 and 5: none was kept from being taken by the one before.
    assert caplog.text.count("version 1 is given up; training stays on version 0") == 3
    assert Never.stopped - before == 3 * 2
    tries = lost_tries(next(tmp_path.glob("run-*")))
    assert [(line["number"], line["try"]) for line in tries] == [(1, 1), (1, 2)] * 3
    cost = report["refresh_cost"]
    assert cost["lost_seconds"] == pytest.approx(sum(line["seconds"] for line in tries))  # type: ignore[index]
    assert cost["encoding_device_seconds"] == cost["lost_seconds"] > 0  # type: ignore[index]


def test_waiting_under_a_fixed_switch_is_refused(world: World, tmp_path: Path) -> None:
    values = RUN | {"joint__refresh__max_staleness_steps": 3, "joint__refresh__when_stale": "wait"}
    with pytest.raises(
        InputError, match=r"when_stale is 'wait', switch 'fixed'.*set when_stale = 'warn' or switch = 'asap'"
    ):
        joint.main(["--launcher", "local", *world.sets(tmp_path, **values)])
