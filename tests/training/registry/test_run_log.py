"""MLflow: what a run leaves there, once, however often it is taken up."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clara.config.tree import Tracking
from clara.errors import InputError
from clara.storage.manifest import manifest_hash, read_manifest
from clara.tracking.names import flatten
from clara.tracking.run_log import Run, TrackingError
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.follow import NewLines
from training.loop.lines import parse
from training.registry.run_log import Tracker
from training.registry.store import open_run_log


def test_flatten_names_every_leaf() -> None:
    assert flatten({"a": 1, "b": {"c": [2, 3], "d": {"e": "x"}}, "f": {}}) == {
        "a": "1",
        "b.c": "[2, 3]",
        "b.d.e": "x",
        "f": "{}",
    }


def test_metrics_of_a_resumed_run_count_once() -> None:
    lines = ['{"step": 1, "loss": 3.0}', '{"step": 2, "loss": 2.0}', '{"step": 2, "loss": 1.5}', '{"step": 3, "lo']
    assert parse(lines) == {1: {"loss": 3.0}, 2: {"loss": 1.5}}


def test_new_lines_are_whole_and_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = NewLines(path, from_start=True)
    assert lines.read() == []
    path.write_text("one\ntw")
    assert lines.read() == ["one"]
    with open(path, "a") as stream:
        stream.write("o\nthree\n")
    assert lines.read() == ["two", "three"]
    assert lines.read() == []
    assert NewLines(path, from_start=False).read() == []


def test_a_resumed_run_may_have_other_threads(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    first = Tracker(settings, "run", {"launch.threads": "0", "seed": "0"}, {})
    second = Tracker(settings, "run", {"launch.threads": "1", "seed": "0", "new": "x"}, {})
    assert second.run_id == first.run_id
    data = MlflowClient(settings.uri).get_run(first.run_id).data
    assert data.params == {"launch.threads": "0", "seed": "0", "new": "x"}
    assert data.tags["resumed.launch.threads"] == "1"


def test_a_deleted_experiment_is_reported_with_what_restores_it(
    empty_store: Callable[[Path], str], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    settings = Tracking(uri=empty_store(tmp_path), experiment="towns")
    client = MlflowClient(settings.uri)
    number = client.create_experiment("towns", artifact_location=tmp_path.as_uri())
    client.delete_experiment(number)
    words = f"experiment 'towns' is deleted; restore it with mlflow experiments restore -x {number}, or name another"
    with pytest.raises(InputError, match=words):
        Tracker(settings, "run", {}, {})
    with pytest.raises(TrackingError, match=words):
        open_run_log(settings.uri).begin(Run("towns", "corpus", {}))
    client.restore_experiment(number)
    assert Tracker(settings, "run", {}, {}).run_id


def test_figures_wait_while_the_store_does_not_answer(
    empty_store: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    settings = Tracking(uri=empty_store(tmp_path))
    tracker = Tracker(settings, "run", {}, {})
    tracker.log_lines(['{"step": 1, "loss": 3.0}'])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    (tmp_path / "report.json").write_text("{}")

    def away(*_: object, **__: object) -> None:
        raise MlflowException("nobody there")

    with monkeypatch.context() as outage:
        outage.setattr(MlflowClient, "log_batch", away)
        outage.setattr(MlflowClient, "set_terminated", away)
        tracker.log_lines(['{"step": 2, "loss": 2.0}'])
        tracker.log_lines(['{"step": 3, "loss": 1.5}'])
        tracker.fail()
        with pytest.raises(
            InputError,
            match=r"does not answer \(nobody there\); the run is done and is stored beside "
            r".*report.json: give the same command",
        ):
            tracker.finish(tmp_path / "report.json", tmp_path / "metrics.jsonl", tmp_path / "curves", {})
    assert caplog.text.count("training continues") == 1
    tracker.log_lines(['{"step": 4, "loss": 1.0}'])
    history = MlflowClient(settings.uri).get_metric_history(tracker.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.0), (3, 1.5), (4, 1.0)]


def test_an_unreachable_server_is_reported_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"tracking.uri 'http://127.0.0.1:9': cannot be used"):
        Tracker(Tracking(uri="http://127.0.0.1:9"), "run", {}, {})
    assert time.monotonic() - began < 60
    assert os.environ.pop("MLFLOW_HTTP_REQUEST_MAX_RETRIES") == "2"


@pytest.mark.slow
def test_run_is_tracked_once(world: World, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    arguments = [
        "--launcher",
        "local",
        *world.sets(tmp_path / "out", joint__steps=3, joint__evaluate_every=3, tracking__uri=uri),
    ]
    assert joint.main(arguments) == 0
    (run_directory,) = (tmp_path / "out").glob("run-*")
    noted = json.loads((run_directory / "mlflow.json").read_text())
    # As if the process had been killed while it wrote to the store.
    (run_directory / "mlflow.json").unlink()
    assert joint.main(arguments) == 0
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("clara").experiment_id])
    assert run.info.run_id == noted["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params["joint.steps"] == "3"
    assert run.data.tags["clara.memory.hash"] == manifest_hash(world.memory)
    assert run.data.tags["clara.memory.fingerprint"] == read_manifest(world.memory)["fingerprint"]
    assert run.data.tags["clara.questions.hash"] == manifest_hash(world.questions)
    assert run.data.tags["clara.made.checkpoint.hash"] == manifest_hash(tmp_path / "out/checkpoint")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]
    pictures = {a.path for a in client.list_artifacts(run.info.run_id, "curves")}
    assert {"curves/loss.png", "curves/retrieval.png", "curves/held_out_recall.png"} <= pictures
    # What re-encoding costs, at every step and for the run.
    for name in ("used_memory_version", "blocked_share", "refresh_compute_share", "memory_lag_steps", "pool_lag_steps"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3]
    assert run.data.metrics["run.refresh.seconds"] == 0.0
    assert run.data.metrics["run.blocked_share"] == run.data.metrics["blocked_share"] == 0.0
    assert run.data.metrics["run.refresh.questions_per_second_alone"] > 0


@pytest.mark.slow
def test_refreshes_and_staleness_arrive(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    refresh = {
        "policy": "full",
        "switch": "stop",
        "start_step": 1,
        "every_steps": 2,
        "canary_every": 1,
        "canary_rows": 8,
    }
    values = {f"joint__refresh__{name}": value for name, value in refresh.items()}
    assert (
        joint.main(
            [
                "--launcher",
                "local",
                *world.sets(
                    tmp_path / "out", joint__steps=4, joint__train_compressor="true", tracking__uri=uri, **values
                ),
            ]
        )
        == 0
    )
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("clara").experiment_id])

    def history(name: str) -> dict[int, float]:
        return {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}

    # Snapshots after the first and the third step; training waited, and went on with the new version.
    assert history("used_memory_version") == {1: 0, 2: 1, 3: 1, 4: 2}
    assert history("staleness_steps") == {1: 0, 2: 0, 3: 1, 4: 0}
    for name in ("refresh_seconds", "refresh_ready_seconds", "refresh_bytes"):
        assert list(history(name)) == [1, 3], name
        assert min(history(name).values()) > 0, name
    for name in ("canary_cosine", "canary_overlap", "canary_recall_gap"):
        assert list(history(name)) == [1, 2, 3, 4], name
    assert history("canary_cosine")[1] < 1
    assert run.data.metrics["run.refresh.refreshes"] == 2
    assert run.data.metrics["run.refresh.mean_ready_seconds"] > 0
    assert run.data.metrics["run.refresh.lost_tries"] == 0
    assert 0 < run.data.metrics["run.blocked_share"] < 1
    assert 0 < run.data.metrics["run.refresh.compute_share"] < 1


def test_store_that_cannot_be_used_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri 'nonsense://x'"):
        joint.main(["--launcher", "local", *world.sets(tmp_path / "out", tracking__uri="nonsense://x")])


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no database " * 400)
    with pytest.raises(InputError, match=r"tracking\.uri .*cannot be used .*not a database"):
        Tracker(Tracking(uri=f"sqlite:///{tmp_path / 'notes'}"), "run", {}, {})
