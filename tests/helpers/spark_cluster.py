"""Spark on this machine: the job server's jar, a master, a worker and a pool of Python workers on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import psutil
import pytest

from tests.helpers.ports import free_ports

ROOT = Path(__file__).parents[2]
JARS = ROOT.parent / "shared" / "jars"
_MASTER, _WORKER = "org.apache.spark.deploy.master.Master", "org.apache.spark.deploy.worker.Worker"


class JobServer(NamedTuple):
    """The jar to run, and Beam's part of it, which executors need."""

    jar: Path
    staged: Path


class Cluster(NamedTuple):
    """Where the processes of a cluster are reached, and what they are."""

    master: str
    pool: str
    worker_process: psutil.Process
    pool_process: psutil.Process
    folder: Path


def make_job_server(folder: Path) -> JobServer:
    """Unpack the job server, or skip the test where it, Java or Spark is not there."""
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    if not (JARS / "job-server-jar").is_file():
        pytest.skip(f"no job server in {JARS}")
    jar = folder / "job-server.jar"
    subprocess.run([sys.executable, str(JARS / "job-server-jar"), str(jar)], check=True)
    return JobServer(jar, next(folder.glob("beam-spark-job-server-*.jar")))


def spark_environment() -> dict[str, str]:
    """Variables that Spark's programs want."""
    import pyspark

    home = str(Path(pyspark.__file__).parent)
    return {
        **os.environ,
        "SPARK_HOME": home,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_NO_DAEMONIZE": "1",
        "PYTHONPATH": str(ROOT),
    }


def wait_for(what: Callable[[], bool], seconds: float = 600) -> None:
    """Wait until something holds; a busy machine takes minutes to start a JVM."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(command: list[str], log: IO[str], environment: dict[str, str]) -> Iterator[psutil.Process]:
    """A process, which is ended with all of its children."""
    started = psutil.Process(subprocess.Popen(command, stdout=log, stderr=log, env=environment).pid)
    try:
        yield started
    finally:
        family = [*started.children(recursive=True), started]
        started.terminate()
        _, left = psutil.wait_procs(family, timeout=15)
        for one in left:
            one.kill()


@contextmanager
def standalone(folder: Path) -> Iterator[Cluster]:
    """A master, a worker of two cores, and a pool of Python workers."""
    environment, (port, pool) = spark_environment(), free_ports(2)
    spark_class = str(Path(environment["SPARK_HOME"]) / "bin" / "spark-class")
    address = f"spark://127.0.0.1:{port}"
    with ExitStack() as stack:
        logs = {
            name: stack.enter_context(open(folder / f"{name}.log", "w", encoding="utf-8"))
            for name in ("master", "worker", "pool")
        }
        pool_command = [sys.executable, "-m", "pipelines.worker_pool", f"--port={pool}"]
        pool_process = stack.enter_context(process(pool_command, logs["pool"], environment))
        master_command = [spark_class, _MASTER, "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]
        stack.enter_context(process(master_command, logs["master"], environment))
        wait_for(lambda: listens(port))
        worker_command = [
            spark_class,
            _WORKER,
            "--host",
            "127.0.0.1",
            "--cores",
            "2",
            "--memory",
            "2g",
            "--webui-port",
            "0",
        ]
        worker = stack.enter_context(
            process([*worker_command, "-d", str(folder / "work"), address], logs["worker"], environment)
        )
        wait_for(lambda: "Successfully registered with master" in (folder / "worker.log").read_text(encoding="utf-8"))
        wait_for(lambda: listens(pool))
        yield Cluster(address, f"localhost:{pool}", worker, pool_process, folder)
