"""The HTTP service in this process: a client of the application, and a server at a port of the loopback."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from fastapi.testclient import TestClient

from clara.config.serving import Serving
from clara.serving.app import make_app
from clara.serving.command import bound
from clara.serving.evaluation import Report
from clara.serving.metrics import Metrics
from clara.serving.registry import Describe
from clara.system import System
from tests.helpers.evaluation_world import World

ROOT = Path(__file__).parents[2]


@contextmanager
def client_of(
    system: System,
    *,
    key: str = "",
    metrics: Metrics | None = None,
    against: System | None = None,
    describe: Describe | None = None,
    report: Report | None = None,
    **settings: Any,
) -> Iterator[TestClient]:
    """A client of a service with these settings, while it runs."""
    app = make_app(
        system, Serving(**settings), key=key, metrics=metrics, against=against, describe=describe, report=report
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@contextmanager
def server_of(
    system: System,
    *,
    key: str = "",
    against: System | None = None,
    describe: Describe | None = None,
    report: Report | None = None,
    **settings: Any,
) -> Iterator[tuple[uvicorn.Server, str]]:
    """A server and its URL, while it runs; it is stopped as by a signal."""
    limits = Serving(**settings)
    with bound("127.0.0.1", 0) as taken:
        config = uvicorn.Config(
            make_app(system, limits, key=key, against=against, describe=describe, report=report),
            log_config=None,
            timeout_graceful_shutdown=limits.shutdown_seconds,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield server, f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def process_of(world: World, log: Path, *options: str) -> Iterator[tuple[psutil.Popen, str]]:
    """A service as a separate process and its URL, from when it answers; its log is the given file."""
    given = [f"--checkpoint={world.checkpoint}", f"--memory={world.memory}", f"--index={world.index}", "--port=0"]
    with open(log, "w") as lines:
        command = [sys.executable, "-m", "clara.serving", *given, *options]
        process = psutil.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=lines)
    try:
        wait_for(lambda: "startup complete" in log.read_text() or process.poll() is not None, 600)
        assert process.poll() is None, log.read_text()
        yield process, next(line["url"] for line in map(json.loads, log.read_text().splitlines()) if "url" in line)
    finally:
        process.kill()
        process.wait()


def wait_for(holds: Any, seconds: float = 60.0) -> None:
    """Wait until a function returns something true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def events_of(text: str) -> list[tuple[str, Any]]:
    """Names and contents of server-sent events."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def figure(client: TestClient, name: str) -> float:
    """A figure of /metrics, without labels."""
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[:1] != "#")
    return float(lines[name])
