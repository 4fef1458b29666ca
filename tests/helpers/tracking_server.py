"""An MLflow server as a team runs it: authentication on, PostgreSQL for records, S3 for files; all on the loopback."""

import base64
import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import stores
from tests.helpers.ports import free_ports

ROOT = Path(__file__).parents[2]
ADMIN = "admin"
_OWNER = "mlflow"
_PATIENCE_SECONDS = 600


def postgres_binaries() -> Path | None:
    """The folder with initdb and postgres, of the newest version that is installed."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


def _not_root() -> tuple[list[str], str]:
    """What a command starts with so that PostgreSQL, which refuses root, runs; and that user's name."""
    if os.getuid() != 0:
        return [], pwd.getpwuid(os.getuid()).pw_name
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"], "postgres"


@contextmanager
def postgres(databases: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Address and password of a PostgreSQL server with these databases, without the database's name.

    It keeps nothing: `fsync` is off, and its folder is removed.
    """
    binaries = postgres_binaries()
    assert binaries is not None
    prefix, user = _not_root()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other users
    if prefix:
        shutil.chown(folder, user, user)
    port, secret = free_ports(1)[0], folder / "secret"
    password = secrets.token_hex(8)
    secret.write_text(password, encoding="utf-8")
    secret.chmod(0o644)
    as_user = {"cwd": folder, "stdout": subprocess.DEVNULL}
    made = ["initdb", "-D", str(folder / "data"), "-U", _OWNER, "--auth=scram-sha-256", f"--pwfile={secret}"]
    subprocess.run([*prefix, str(binaries / made[0]), *made[1:]], check=True, **as_user)  # type: ignore[call-overload]
    command = [str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder), "-h"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([*prefix, *command, "127.0.0.1", "-F"], cwd=folder, stdout=log, stderr=log)
    try:
        import psycopg

        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                connection = psycopg.connect(
                    host="127.0.0.1", port=port, user=_OWNER, password=password, dbname="postgres"
                )
                break
            except psycopg.OperationalError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        connection.autocommit = True
        for name in databases:
            connection.cursor().execute(f'CREATE DATABASE "{name}"')
        connection.close()
        yield f"{_OWNER}@127.0.0.1:{port}", password
    finally:
        process.send_signal(signal.SIGINT)  # ends it at once, with open connections too
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        url: its address, without credentials.
        password: of the administrator.
        bucket: environment that leads to the bucket with its files, for a look behind the server.
    """

    url: str
    password: str
    bucket: Mapping[str, str]

    def login(self, user: str = ADMIN, password: str | None = None) -> dict[str, str]:
        """Environment variables by which MLflow's clients log in."""
        return {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password or self.password}

    def call(self, method: str, path: str, body: Mapping[str, object]) -> None:
        """Call a route of the API as the administrator."""
        login = base64.b64encode(f"{ADMIN}:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        data = json.dumps(body).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", data, headers, method=method)).read()

    def add_user(self, user: str, password: str) -> None:
        """Create a user."""
        self.call("POST", "/api/2.0/mlflow/users/create", {"username": user, "password": password})

    def set_password(self, user: str, password: str) -> None:
        """Give a user another password: what was valid has expired."""
        self.call("PATCH", "/api/2.0/mlflow/users/update-password", {"username": user, "password": password})


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server; its configuration is that of infra/mlflow, with this database and password."""
    with postgres(("mlflow", "mlflow_auth")) as (database, secret), stores.running("s3") as store:
        port, password = free_ports(1)[0], secrets.token_hex(8)
        template = (ROOT / "infra/mlflow/basic_auth.ini").read_text(encoding="utf-8")
        configuration = folder / "basic_auth.ini"
        assert "mlflow@postgres/" in template
        configuration.write_text(template.replace("mlflow@postgres", database), encoding="utf-8")
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
        command += [
            "--backend-store-uri",
            f"postgresql+psycopg://{database}/mlflow",
            "--artifacts-destination",
            f"{store.url}/mlflow",
        ]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        own = {
            **store.environment,
            "PGPASSWORD": secret,
            "MLFLOW_S3_ENDPOINT_URL": store.environment["AWS_ENDPOINT_URL"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=os.environ | own
            )
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _PATIENCE_SECONDS
            while True:
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"{url}/health")
                    break
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.5)
            yield Server(url, password, store.environment)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
