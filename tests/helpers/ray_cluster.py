"""A private Ray cluster: nodes started by `ray start`, on private ports, with a token and a temporary directory."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.helpers.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
_START_SECONDS = 600
# Every process of the cluster inherits it, whoever starts it.
_MARK = "RAY_AUTH_TOKEN_PATH"
_HEAD_PORTS = ("port", "ray-client-server-port", "dashboard-port")
_NODE_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)


# Ray runs its workers at niceness 15: beside another busy process, a test of a cluster would wait for them for minutes.
NICENESS = {"RAY_worker_niceness": "0"}


def kill(processes: Iterable[psutil.Process]) -> None:
    """End processes; one that has ended is no fault."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def below(node: psutil.Process, title: str) -> list[psutil.Process]:
    """Processes of a node whose command line begins so."""
    found = []
    for process in node.children(recursive=True):
        try:
            if "".join(process.cmdline()[:1]).startswith(title):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def local_ray(num_cpus: int) -> Iterator[None]:
    """Ray in this process and below it, whose workers import this working tree."""
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        runtime_env={
            "env_vars": {
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "OMP_NUM_THREADS": "1",
            }
        },
    )
    try:
        yield
    finally:
        ray.shutdown()


class Cluster:
    """Nodes on this machine. `close` leaves nothing behind."""

    def __init__(self, folder: Path, num_cpus: int, settings: Mapping[str, str] | None = None) -> None:
        """Start the head; `settings` are more variables for every process of the cluster."""
        # Sockets are below it, and their paths may not be long.
        self._temporary = Path("/tmp") / f"ray-{os.getpid()}"
        self._folder = folder
        self._nodes: list[psutil.Popen] = []
        (folder / "token").write_text(f"only-for-this-test-{os.urandom(16).hex()}")
        own = {"RAY_AUTH_MODE": "token", _MARK: str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
        own |= NICENESS
        own["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        own |= settings or {}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own
        self.head, ports = self._start(
            ["--head", "--temp-dir", str(self._temporary)], num_cpus, [*_HEAD_PORTS, *_NODE_PORTS]
        )
        self.address = f"127.0.0.1:{ports['port']}"
        self.environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{ports['dashboard-port']}"

    def add_node(self, num_cpus: int) -> psutil.Popen:
        """Another node, as another machine would join."""
        return self._start(["--address", self.address], num_cpus, _NODE_PORTS)[0]

    def _start(
        self, arguments: list[str], num_cpus: int, port_names: Sequence[str]
    ) -> tuple[psutil.Popen, dict[str, int]]:
        command = [
            str(BIN / "ray"),
            "start",
            "--block",
            *arguments,
            "--node-ip-address",
            "127.0.0.1",
            "--num-cpus",
            str(num_cpus),
        ]
        # Workers' ports of the kernel's choice: from Ray's range, two clusters of a machine take the same ones.
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--object-store-memory", str(2**27)]
        log, deadline = self._folder / f"node-{len(self._nodes)}.txt", time.monotonic() + _START_SECONDS
        while True:
            # Ray gives a node half a minute to start, which is not enough on a machine that is busy. A port that was
            # taken meanwhile reads the same (`timed out during startup`), so each try has its own.
            began = time.time()
            ports = dict(zip(port_names, free_ports(len(port_names)), strict=True))
            given = [part for name, port in ports.items() for part in (f"--{name}", str(port))]
            with open(log, "w") as said:
                started = psutil.Popen([*command, *given], env=self.environment, stdout=said, stderr=said)
            while started.poll() is None:
                if "Ray runtime started" in log.read_text():
                    self._nodes.append(started)
                    return started, ports
                time.sleep(0.2)
            self._kill_since(began)
            assert time.monotonic() < deadline, log.read_text()

    def _kill_since(self, began: float) -> None:
        """End what belongs to this cluster and was started since then, whoever its parent is."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.create_time() >= began - 1 and process.environ().get(_MARK) == self.environment[_MARK]:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        kill(found)

    def lose(self, node: psutil.Popen) -> None:
        """End a node at once, as if its machine were gone."""
        kill([*node.children(recursive=True), node])

    def job(self, *arguments: str) -> str:
        """What `ray job …` says."""
        command = [str(BIN / "ray"), "job", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        return done.stdout + done.stderr

    def submit(self, name: str, program: Sequence[str], timeout_seconds: float) -> None:
        """Submit a job, again while the head's agent is still starting (`No available agent`)."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            said = self.job("submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--", *program)
            if f"Job '{name}' submitted successfully" in said:
                return
            assert time.monotonic() < deadline, said
            time.sleep(2)

    def close(self) -> None:
        """End every process of every node."""
        self._kill_since(0.0)
        for node in self._nodes:
            node.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)
