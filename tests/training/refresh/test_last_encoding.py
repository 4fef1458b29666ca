"""The final re-encoding: where refreshes run, with retries; if all fail, a repeated command does only that."""

import json
from pathlib import Path

import pytest

from clara.config.load import load
from clara.errors import InputError
from clara.memory.store import MemoryStore
from tests.helpers.joint_world import Inline, World
from training import joint
from training.launch.cluster_shares import check_room, scaling
from training.loop.lines import read
from training.refresh.attempts import lost_tries
from training.refresh.job import RefreshError, RefreshJob, RefreshResult, expected_fingerprint, fingerprint_of

RUN: dict[str, object] = {
    "joint__train_compressor": "true",
    "joint__steps": 3,
    "joint__refresh__final": "true",
    "joint__refresh__policy": "full",
    "joint__refresh__switch": "stop",
    "joint__refresh__start_step": 1,
}


class Unlucky(Inline):
    """Fails the first `failing` times that it is to encode with the run's CHECKPOINT."""

    failing, jobs = 0, 0

    def start(self, job: RefreshJob, log: Path) -> Inline:
        if Path(job.checkpoint).name == "checkpoint":
            type(self).jobs += 1
            if type(self).failing:
                type(self).failing -= 1
                shard = Path(job.memory) / "shard-00000-of-00002"
                shard.mkdir(parents=True, exist_ok=True)
                (shard / "memory.safetensors").touch()
                self._result = RefreshError("its GPU is lost")
                return self
        return super().start(job, log)


class Hanging(Inline):
    """Never done with the run's CHECKPOINT."""

    def start(self, job: RefreshJob, log: Path) -> Inline:
        self.hangs = Path(job.checkpoint).name == "checkpoint"
        return super().start(job, log)

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        return None if self.hangs else super().result(timeout_seconds)

    def stop(self) -> None:
        assert self.hangs


def arguments(world: World, output: Path, **values: object) -> list[str]:
    return ["--launcher", "local", *world.sets(output, **RUN | values)]


def report(output: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((output / "report.json").read_text())
    return found


def whole(output: Path) -> None:
    """The report's MEMORY fits the CHECKPOINT."""
    memory = str(report(output)["memory"])
    expected = expected_fingerprint(output / "checkpoint", "", fingerprint_of(memory))
    assert len(MemoryStore.open(memory, accept=[expected], verify=True)) == 40
    assert report(output)["memory_lag_steps"] == 0


def status(uri: str, run: Path) -> str:
    """Of the MLflow run."""
    from mlflow import MlflowClient

    return str(MlflowClient(uri).get_run(json.loads((run / "mlflow.json").read_text())["run_id"]).info.status)


def test_a_try_that_fails_is_made_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Unlucky)
    monkeypatch.setattr(Unlucky, "failing", 1)
    monkeypatch.setattr(Unlucky, "jobs", 0)
    assert joint.main(arguments(world, tmp_path, joint__refresh__max_attempts=2)) == 0
    whole(tmp_path)
    assert Unlucky.jobs == 2
    assert report(tmp_path)["memory"] == str(tmp_path / "memory-v2")
    (lost,) = lost_tries(next(tmp_path.glob("run-*")))
    assert (lost["number"], lost["try"], lost["why"]) == (2, 1, "its GPU is lost")
    assert [(made["number"], made["tries"]) for made in report(tmp_path)["refreshes"]] == [(1, 1), (2, 2)]  # type: ignore[attr-defined]
    cost = report(tmp_path)["refresh_cost"]
    assert (cost["refreshes"], cost["lost_tries"]) == (2, 1)  # type: ignore[index]


@pytest.mark.slow
def test_one_that_comes_to_nothing_costs_the_re_encoding_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Unlucky)
    monkeypatch.setattr(Unlucky, "failing", 2)
    monkeypatch.setattr(Unlucky, "jobs", 0)
    # Nothing but the last re-encoding needs version 1, which is not deleted before.
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    values: dict[str, object] = {
        "joint__refresh__keep_versions": 0,
        "joint__checkpoint_every": 10,
        "tracking__uri": uri,
    }
    given = arguments(world, tmp_path, joint__refresh__max_attempts=2, **values)
    said = (
        r"CHECKPOINT after 3 steps is there, .*MEMORY .*memory-v1 lags it by 2 steps: "
        r".*failed \(its GPU is lost\); run the same command"
    )
    with pytest.raises(InputError, match=said):
        joint.main(given)
    assert Unlucky.jobs == 2
    assert (report(tmp_path)["memory_lag_steps"], report(tmp_path)["memory"]) == (2, str(tmp_path / "memory-v1"))
    assert not (tmp_path / "memory-v2").exists()
    (run,) = tmp_path.glob("run-*")
    assert status(uri, run) == "FAILED"
    trained, metrics = (tmp_path / "checkpoint/manifest.json").stat().st_mtime_ns, (run / "metrics.jsonl").read_bytes()
    # Again: nothing is trained, and the re-encoding alone is made.
    assert joint.main(given) == 0
    assert Unlucky.jobs == 3
    assert (tmp_path / "checkpoint/manifest.json").stat().st_mtime_ns == trained
    assert (run / "metrics.jsonl").read_bytes() == metrics
    whole(tmp_path)
    assert not (tmp_path / "memory-v1").exists()
    assert list(read(run / "metrics.jsonl")) == [1, 2, 3]
    assert status(uri, run) == "FINISHED"
    # And then there is nothing left to do.
    assert joint.main(given) == 0
    assert Unlucky.jobs == 3


def test_one_that_hangs_is_ended(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Hanging)
    given = arguments(world, tmp_path, joint__refresh__max_attempts=1, joint__refresh__max_seconds=0.5)
    with pytest.raises(InputError, match=r"not ready 0\.5 s after it began \(joint\.refresh\.max_seconds\)"):
        joint.main(given)
    assert report(tmp_path)["memory_lag_steps"] == 2


def test_resources_that_the_cluster_lacks_are_reported_before_a_step(world: World, tmp_path: Path) -> None:
    config = load(None, world.sets(tmp_path, **RUN | {"joint__refresh__num_cpus": 3, "launch__num_workers": 1})[1::2])
    with pytest.raises(InputError, match=r"joint\.refresh\.num_cpus is 3, the cluster has 2 cores; add a node"):
        scaling(config, {"CPU": 2.0})
    check_room(config, {"CPU": 3.0})
