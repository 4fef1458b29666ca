"""A registered version in the environment that MLflow makes for it, and as the context of a docker image."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.helpers.evaluation_world import World
from tests.helpers.ports import free_ports
from tests.helpers.registry import QUESTIONS, evaluation, registration, store, world
from training import register

__all__ = ["evaluation", "store", "world"]  # fixtures
pytestmark = pytest.mark.release

MLFLOW = [sys.executable, "-m", "mlflow"]
URI = "models:/towns/1"


def pyenv() -> str:
    """Why MLflow's default environment cannot be made here; empty if it can."""
    found = shutil.which("pyenv") or str(Path.home() / ".pyenv" / "bin" / "pyenv")
    if not Path(found).is_file():
        return "pyenv is not installed; MLflow's default environments need it"
    version = ".".join(map(str, sys.version_info[:3]))
    there = subprocess.run([found, "versions", "--bare"], capture_output=True, text=True, check=False).stdout.split()
    return "" if version in there else f"pyenv has no Python {version}, and would compile it"


@pytest.fixture(scope="module")
def surroundings(
    world: World, evaluation: Path, store: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Environment variables of somebody who has no checkout; the version is registered in the store that they name."""
    assert register.main(registration(world, evaluation, store, "before")) == 0
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    own["PATH"] = f"{own['PATH']}:{Path.home() / '.pyenv' / 'bin'}"
    return own | {"MLFLOW_TRACKING_URI": store, "MLFLOW_ENV_ROOT": str(tmp_path_factory.mktemp("environments"))}


@pytest.fixture(scope="module")
def served(surroundings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of `mlflow models serve`, in the environment that it makes by default."""
    if reason := pyenv():
        pytest.skip(reason)
    folder, port = tmp_path_factory.mktemp("served"), free_ports(1)[0]
    command = [*MLFLOW, "models", "serve", "-m", URI, "--port", str(port), "--workers", "1"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=surroundings
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 3600
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{url}/ping")
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(1)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def asked(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and body of a reply."""
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_default_environment_answers(served: str, surroundings: dict[str, str], store: str) -> None:
    status, found = asked(served, {"inputs": QUESTIONS, "params": {"num_selected": 1, "max_new_tokens": 2}})
    assert status == 200, found
    mlflow.set_tracking_uri(store)
    expected = mlflow.pyfunc.load_model(URI).predict(QUESTIONS, params={"num_selected": 1, "max_new_tokens": 2})
    for one, other in zip(found["predictions"], expected, strict=True):
        assert one["answer"] == other["answer"]
        assert [d["row_id"] for d in one["documents"]] == [d["row_id"] for d in other["documents"]]
    for body, words in (
        ({"inputs": [""]}, "question 1 is ''; expected some text"),
        ({"inputs": QUESTIONS, "params": {"passages": 1}}, "params has 'passages'"),
        ({"dataframe_records": [{"id": "7", "question": "Who?"}]}, "expected one column question and no other"),
    ):
        status, found = asked(served, body)
        assert (status, words in found["message"]) == (400, True), found
    (python,) = Path(surroundings["MLFLOW_ENV_ROOT"]).glob("**/bin/python")
    code = "import importlib.metadata as m, training, infra; print(m.version('clara-rag'), training.__file__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/", env=surroundings, check=True)
    version, place = done.stdout.split()
    assert re.fullmatch(r"[\d.]+\+src\.[0-9a-f]{12}", version)
    assert place.startswith(str(python.parents[1]))


def test_a_docker_image_can_install_it(surroundings: dict[str, str], tmp_path: Path) -> None:
    context = tmp_path / "context"
    command = [*MLFLOW, "models", "generate-dockerfile", "-m", URI, "-d", str(context)]
    subprocess.run(command, check=True, cwd=tmp_path, env=surroundings, capture_output=True)
    text = (context / "Dockerfile").read_text(encoding="utf-8")
    source = re.search(r"^COPY (\S+) /opt/ml/model$", text, re.MULTILINE)
    workdir = re.search(r"^WORKDIR (\S+)$", text, re.MULTILINE)
    assert source
    assert workdir
    assert f"FROM python:{'.'.join(map(str, sys.version_info[:3]))}-slim" in text
    assert "_install_pyfunc_deps('/opt/ml/model'" in text
    # As that function does, from a working directory where the model is not.
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    requirements = context / source[1] / "requirements.txt"
    install = [environment / "bin" / "pip", "install", "--dry-run", "--no-deps", "-r", requirements]
    done = subprocess.run(install, cwd=elsewhere, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Would install .*clara-rag-[\d.]+\+src\.", done.stdout)
