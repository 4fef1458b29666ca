"""A Ray cluster of a test's own: nodes as `ray start` makes them, on private ports, with a token and a temporary directory of their own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
_START_SECONDS = 600
# Every process of the cluster inherits it, whoever starts it.
_MARK = "RAY_AUTH_TOKEN_PATH"
_HEAD_PORTS = ("port", "ray-client-server-port", "dashboard-port")
_NODE_PORTS = (
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port", "node-manager-port",
    "object-manager-port",
)  # fmt: skip


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A port that nobody listens at for each name."""
    probes = [socket.socket() for _ in names]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = {name: int(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}
    for probe in probes:
        probe.close()
    return ports


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


class Cluster:
    """Nodes on this machine. `close` leaves nothing behind."""

    def __init__(self, folder: Path, num_cpus: int) -> None:
        """Start the head."""
        # Sockets lie below it, and their paths may not be long.
        self._temporary = Path("/tmp") / f"ray-{os.getpid()}"
        self._folder = folder
        self._nodes: list[psutil.Popen] = []
        (folder / "token").write_text(f"only-for-this-test-{os.urandom(16).hex()}")
        own = {"RAY_AUTH_MODE": "token", _MARK: str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
        own["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own
        ports = free_ports([*_HEAD_PORTS, *_NODE_PORTS])
        self.address = f"127.0.0.1:{ports['port']}"
        arguments = ["--head", "--node-ip-address", "127.0.0.1", "--temp-dir", str(self._temporary)]
        self.head = self._start(arguments, num_cpus, ports)
        self.environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{ports['dashboard-port']}"

    def add_node(self, num_cpus: int) -> psutil.Popen:
        """Another node, as another machine would join."""
        return self._start(["--address", self.address, "--node-ip-address", "127.0.0.1"], num_cpus, free_ports(_NODE_PORTS))

    def _start(self, arguments: list[str], num_cpus: int, ports: dict[str, int]) -> psutil.Popen:
        command = [str(BIN / "ray"), "start", "--block", *arguments, "--num-cpus", str(num_cpus), "--object-store-memory", str(2**27)]
        command += [part for name, port in ports.items() for part in (f"--{name}", str(port))]
        log, deadline = self._folder / f"node-{len(self._nodes)}.txt", time.monotonic() + _START_SECONDS
        while True:
            # Ray gives a node half a minute to start, which is not enough on a machine that is busy.
            began = time.time()
            with open(log, "w") as said:
                started = psutil.Popen(command, env=self.environment, stdout=said, stderr=said)
            while started.poll() is None:
                if "Ray runtime started" in log.read_text():
                    self._nodes.append(started)
                    return started
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
