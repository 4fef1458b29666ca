"""A tracking server of MLflow 2, from the package index, in its own environment."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from clara.config.tree import Tracking
from clara.errors import InputError
from clara.tracking.run_log import Run
from tests.helpers.evaluation_world import World
from tests.helpers.ports import free_ports
from tests.helpers.registry import QUESTIONS, evaluation, promotion, registration, world
from training import promote, register
from training.registry import evaluation_log
from training.registry.description import described
from training.registry.resolve import local_checkpoint
from training.registry.run_log import Tracker
from training.registry.store import open_run_log

__all__ = ["evaluation", "world"]  # fixtures
pytestmark = pytest.mark.release

READY = "CLARA_TEST_MLFLOW_2"
"""Names the folder of an environment that has MLflow 2 already."""


def environment_with_mlflow_2(folder: Path) -> Path:
    if READY in os.environ:
        return Path(os.environ[READY])
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", "mlflow>=2,<3", "sqlalchemy<2.1"], check=True)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("server"), free_ports(1)[0]
    mlflow_2 = environment_with_mlflow_2(tmp_path_factory.mktemp("mlflow-2")) / "bin" / "mlflow"
    command = [mlflow_2, "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "files"), "--host", "127.0.0.1", "--workers", "1"]
    url = f"http://127.0.0.1:{port}"
    own = {"PATH": f"{mlflow_2.parent}:{os.environ['PATH']}", "PYTHONPATH": ""}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=os.environ | own
        )
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                assert urllib.request.urlopen(f"{url}/version").read().startswith(b"2.")
                break
            except urllib.error.URLError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(1)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def states(server: str) -> set[str]:
    client = mlflow.MlflowClient(server)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.status for run in client.search_runs(experiments)}


def test_all_that_is_logged_and_registered(world: World, evaluation: Path, server: str, tmp_path: Path):
    tracker = Tracker(Tracking(uri=server), "run", {"seed": "0"}, {"tag": "x"})
    tracker.log_lines(['{"step": 1, "loss": 3.0}', '{"step": 2, "loss": 2.0}'])
    assert tracker.log.last_step("loss") == 2
    tracker.log.file(evaluation / "report.json")
    tracker.log.finish()
    assert evaluation_log.track(evaluation, server, "evaluations")

    assert register.main(registration(world, evaluation, server, "before")) == 0
    assert register.main(registration(world, evaluation, server, "before")) == 0, "the same again is the same version"
    assert promote.main(promotion(server, "latest")) == 0
    client = mlflow.MlflowClient()
    assert [version.version for version in client.search_model_versions("name = 'towns'")] in ([1], ["1"])
    assert states(server) == {"FINISHED"}
    assert Path(local_checkpoint("models:/towns@champion", server)).is_dir()
    assert len(mlflow.pyfunc.load_model("models:/towns@champion").predict(QUESTIONS)) == 2

    assert register.main(registration(world, evaluation, server, "after")) == 0
    assert promote.main(promotion(server, "2")) == 0
    assert promote.main(["--name", "towns", "--rollback", "--tracking-uri", server]) == 0
    found = described(client, "towns")
    assert found["aliases"] == {"champion": "1"}
    assert [entry["outcome"] for entry in found["record"]] == ["promoted", "promoted", "rolled back"]
    assert found["record"][1]["test"]["num_questions"] > 1

    for version in ("1", "2"):
        client.delete_model_version("towns", version)
    with pytest.raises(InputError, match="no version of model towns is registered"):
        local_checkpoint("models:/towns/1", server)


def test_a_deleted_experiment(server: str):
    client = mlflow.MlflowClient(server)
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    with pytest.raises(InputError, match=f"restore it with mlflow experiments restore -x {number}"):
        Tracker(Tracking(uri=server, experiment="gone"), "run", {}, {})
    client.restore_experiment(number)
    assert not open_run_log(server).begin(Run("gone", "run", {}))
