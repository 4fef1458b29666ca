"""A local tracking database is whole or not there, whenever its maker is killed."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from clara.config.load import load
from clara.endpoints import refuse_password
from clara.errors import InputError
from clara.tracking.database import make_database, open_tracking, reason_of
from clara.tracking.names import tracking_names


def test_names_are_in_characters_that_mlflow_takes_and_stay_apart() -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    odd = [
        "systems.joint+5.checkpoint",
        "a b",
        "a/c.d-e_f",
        "all/x/r@5",
        "all/joint+5/r",
        "all/joint_5/r",
        "all/joint:5/r",
        "/a//b",
        "..",
        "../é\n",
        "",
    ]
    odd += ["x" * 250, "x" * 251, "x" * 300]
    named = tracking_names(odd)
    assert list(named) == odd
    for name in named.values():
        _validate_param_name(name)
        _validate_metric_name(name)
        assert 0 < len(name) <= 250
    assert len(set(named.values())) == len(odd)
    kept = {"a/c.d-e_f", "all/joint_5/r", "x" * 250}
    assert {name: named[name] for name in kept} == {name: name for name in kept}
    assert (named["all/x/r@5"], named["systems.joint+5.checkpoint"]) == ("all/x/r_at_5", "systems.joint_5.checkpoint")
    assert named["a b"] == "a_b"


def tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [name for (name,) in database.execute("SELECT name FROM sqlite_master ORDER BY name")]


def maker(*names: str, fails: bool = False):
    def make(uri: str) -> None:
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
            for name in names:
                database.execute(f"CREATE TABLE {name} (x)")
                database.commit()
        if fails:
            raise OSError("no room")

    return make


def test_a_database_that_was_left_half_made_is_none(tmp_path: Path) -> None:
    file = tmp_path / "below" / "runs.db"
    with pytest.raises(OSError, match="no room"):
        make_database(f"sqlite:///{file}", maker("a", fails=True))
    assert list(file.parent.iterdir()) == []
    make_database(f"sqlite:///{file}", maker("a", "b"))
    assert tables(file) == ["a", "b"]
    make_database(f"sqlite:///{file}", maker("c"))  # one that is there stays
    assert tables(file) == ["a", "b"]
    assert [p.name for p in file.parent.iterdir()] == ["runs.db"]


def test_who_is_faster_keeps_its_own(tmp_path: Path) -> None:
    file = tmp_path / "runs.db"

    def slow(uri: str) -> None:
        maker("slow")(uri)
        maker("fast")(f"sqlite:///{file}")

    make_database(f"sqlite:///{file}", slow)
    assert tables(file) == ["fast"]


def test_other_stores_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_database("http://127.0.0.1:9", maker("a"))
    make_database("", maker("a"))
    assert list(tmp_path.iterdir()) == []


class Store:
    """Makes its table when it is first asked, as MLflow does."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def search_experiments(self, *, max_results: int) -> list[str]:
        with closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"))) as database:
            database.execute("CREATE TABLE IF NOT EXISTS experiments (x)")
            return database.execute("SELECT * FROM experiments LIMIT ?", [max_results]).fetchall()


def test_a_store_is_opened_once_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # what the caller has set counts
    file = tmp_path / "below" / "runs.db"
    for _ in range(2):  # made, and found
        assert open_tracking(f"sqlite:///{file}", Store).uri == f"sqlite:///{file}"
        assert tables(file) == ["experiments"]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    file.write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        open_tracking(f"sqlite:///{file}", Store)


class RefusedError(Exception):
    def get_http_status_code(self) -> int:
        return 401


def test_a_refused_login_says_how_to_log_in() -> None:
    class Response:
        status_code = 401

    by_requests = OSError("401 Client Error")
    by_requests.response = Response()  # type: ignore[attr-defined]
    for error in (RefusedError("not authenticated"), by_requests):
        assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in reason_of(error)
        assert str(error) in reason_of(error)
    assert reason_of(ValueError("no\n  route")) == "no route"
    assert reason_of(ValueError()) == "ValueError"


@pytest.mark.parametrize("uri", ["http://u:secret@h:5000", "postgresql://u:secret@h/d", "https://:secret@h"])
def test_a_uri_with_a_password_is_refused_without_showing_it(uri: str) -> None:
    for refused in (lambda: refuse_password(uri), lambda: load(None, [f"tracking.uri={uri}"])):
        with pytest.raises(InputError, match="holds a password, which would be written down") as found:
            refused()
        assert "secret" not in str(found.value)
    for fine in ("", "sqlite:///a/b@c:d.db", "http://user@h:5000", "https://h"):
        assert refuse_password(fine) == fine


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.release)])
def test_killed_while_mlflow_makes_it_the_next_one_opens_it(tmp_path: Path, kills: int) -> None:
    code = (
        "import sys; from training.registry.store import open_store; "
        "print('begins', flush=True); open_store(sys.argv[1])"
    )
    rng = random.Random(0)
    for number in range(kills):
        uri = f"sqlite:///{tmp_path / str(number) / 'runs.db'}"
        process = subprocess.Popen(
            [sys.executable, "-c", code, uri], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        deadline = time.monotonic() + 120
        while (
            not list((tmp_path / str(number)).glob(".runs.db.*"))
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr[-2000:]
