"""The whole way against a real MLflow server: authentication, PostgreSQL, an S3 store; and refusals in one line."""

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from clara.errors import InputError, explained
from infra import cli
from tests.helpers.joint_world import World
from tests.helpers.ports import free_ports
from tests.helpers.tracking_server import ROOT, Server, postgres_binaries, running
from training import register
from training.registry import model_folder

pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(postgres_binaries() is None, reason="PostgreSQL is not installed (initdb)"),
    *(
        pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"pip install {package}")
        for name, package in (("psycopg", "psycopg[binary]"), ("flask_wtf", "flask-wtf"))
    ),
]
USER, PASSWORD, MODEL = "trainer", "a trainer's pass/word", "towns"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server")) as server:
        server.add_user(USER, PASSWORD)
        yield server


@pytest.fixture
def logged_in(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in server.login(USER, PASSWORD).items():
        monkeypatch.setenv(name, value)
    return server


def clara(*arguments: object, status: int = 0) -> str:
    """Run a public command in this process; returns what it prints, or the line of its error."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", ["clara"])
        try:
            done = cli.main([str(argument) for argument in arguments])
        except InputError as error:
            done = 2
            print(explained(error))
    assert done == status, said.getvalue()
    return said.getvalue()


@pytest.fixture(scope="module")
def evaluated(server: Server, world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The CHECKPOINT that a run on the server trained, and the EVALUATION of both."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.login(USER, PASSWORD).items():
            patch.setenv(name, value)
        sets = world.sets(
            folder / "run",
            tracking__uri=server.url,
            joint__steps=30,
            joint__checkpoint_every=30,
            joint__optimiser__learning_rate=1e-2,
        )
        clara("train", "joint", "--launcher", "local", *sets)
        trained, evaluation = folder / "run" / "checkpoint", folder / "evaluation"
        systems = [f"{n}={c},{world.memory},{world.index}" for n, c in (("a", world.checkpoint), ("b", trained))]
        given = ["--questions", world.questions, "--output", evaluation, "--num-selected", 2, "--generate", 0]
        given += ["--splits", "unseen", "--tracking-uri", server.url]
        clara("evaluate", *given, "--system", systems[0], "--system", systems[1])
    return trained, evaluation


def registration(server: Server, world: World, checkpoint: Path, evaluation: Path, system: str) -> list[object]:
    """Arguments of `clara register`."""
    given = ["--name", MODEL, "--checkpoint", checkpoint, "--memory", world.memory, "--index", world.index]
    given += ["--evaluation", evaluation, "--system", system, "--max-new-tokens", 4, "--tracking-uri", server.url]
    return ["register", *given]


def champion_answers(server: Server, folder: Path) -> str:
    """What `clara serve` answers with the champion's model."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "infra.cli", "serve", "--model", f"models:/{MODEL}@champion", "--port", str(port)]
    log = folder / f"serve-{port}"
    with open(log, "w") as file:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([*command, "--tracking-uri", server.url], stdout=file, stderr=file, env=environment)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"{url}/health/ready").read()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        # The page shows the registry, with links to the server's pages.
        shown = json.loads(urllib.request.urlopen(f"{url}/v1/registry").read())
        assert (shown["name"], shown["page"]) == (MODEL, f"{server.url}/#/models/{MODEL}")
        assert all(v["page"].startswith(f"{server.url}/#/experiments/") and v["measures"] for v in shown["versions"])
        body = json.dumps({"question": "Who is the mayor of Arlen on the Tamo?", "passages": 2}).encode()
        request = urllib.request.Request(f"{url}/v1/answers", body, {"Content-Type": "application/json"})
        return str(json.loads(urllib.request.urlopen(request).read())["text"])
    finally:
        process.terminate()
        process.wait()


def test_trained_registered_promoted_served_and_rolled_back(
    logged_in: Server, world: World, evaluated: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, evaluation = evaluated
    server, at = logged_in, f"--tracking-uri={logged_in.url}"
    for version, system, checkpoint in (("1", "a", world.checkpoint), ("2", "b", trained)):
        said = clara(*registration(server, world, checkpoint, evaluation, system))
        assert f"models:/{MODEL}/{version}" in said
    # The files are in the bucket, and came there through the server: this client does not know where the bucket is.
    keys = {
        "endpoint_url": server.bucket["AWS_ENDPOINT_URL"],
        "aws_access_key_id": "x",
        "aws_secret_access_key": "x",
        "region_name": "us-east-1",
    }
    stored = boto3.client("s3", **keys).list_objects_v2(Bucket="bucket", Prefix="mlflow/")["Contents"]
    assert any(entry["Key"].endswith("/model/MLmodel") for entry in stored)
    assert not {"AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"} & set(os.environ)

    for version in ("1", "2"):
        said = clara("promote", "--name", MODEL, "--version", version, "--floors=", "--level=0.2", at)
        assert f"version {version} promoted" in said
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    after = champion_answers(server, tmp_path)
    said = clara("promote", "--name", MODEL, "--rollback", at)
    assert "version 1 has champion back from version 2" in said
    before = champion_answers(server, tmp_path)
    assert before != after
    shown = json.loads(clara("registry", MODEL, at, "--json"))
    assert shown["aliases"] == {"champion": "1"}
    assert [entry["outcome"] for entry in shown["record"]] == ["promoted", "promoted", "rolled back"]


@pytest.mark.parametrize(
    ("user", "password"), [(USER, "wrong"), ("nobody", PASSWORD), ("", "")], ids=["password", "user", "none"]
)
def test_a_wrong_login_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, user: str, password: str, tmp_path: Path, world: World
) -> None:
    for name, value in server.login(user, password or "x").items():
        monkeypatch.setenv(name, value)
        if not user:
            monkeypatch.delenv(name)
    for arguments in (
        ["registry", MODEL, "--tracking-uri", server.url],
        ["promote", "--name", MODEL, "--version", "1", "--tracking-uri", server.url],
        ["train", "joint", "--launcher", "local", *world.sets(tmp_path / "run", tracking__uri=server.url)],
    ):
        (line,) = clara(*arguments, status=2).strip().splitlines()
        assert line.startswith("error: ")
        assert "MLFLOW_TRACKING_USERNAME" in line
        assert not password or password not in line


def test_a_login_that_expires_while_it_registers_leaves_no_version(
    logged_in: Server,
    world: World,
    evaluated: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, (trained, evaluation) = logged_in, evaluated
    arguments = [*map(str, registration(server, world, trained, evaluation, "b")), "--max-new-tokens", "3"]
    saved = model_folder.save_model

    def expires(*given: object) -> None:
        saved(*given)  # type: ignore[arg-type]
        server.set_password(USER, "another long password")

    monkeypatch.setattr(register, "save_model", expires)
    try:
        assert "MLFLOW_TRACKING_USERNAME" in clara(*arguments, status=2)
    finally:
        server.set_password(USER, PASSWORD)
    monkeypatch.setattr(register, "save_model", saved)
    shown = json.loads(clara("registry", MODEL, "--tracking-uri", server.url, "--json"))
    before = len(shown["versions"])
    clara(*arguments)
    shown = json.loads(clara("registry", MODEL, "--tracking-uri", server.url, "--json"))
    assert len(shown["versions"]) == before + 1


def test_what_others_may_not_change_is_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add_user("reader", "a reader's password")
    for name, value in server.login("reader", "a reader's password").items():
        monkeypatch.setenv(name, value)
    at = ["--tracking-uri", server.url]
    assert json.loads(clara("registry", MODEL, *at, "--json"))["aliases"] == {"champion": "1"}
    (line,) = clara("promote", "--name", MODEL, "--version", "2", "--floors=", *at, status=2).strip().splitlines()
    assert line.startswith("error: --tracking-uri")
    assert json.loads(clara("registry", MODEL, *at, "--json"))["aliases"] == {"champion": "1"}
