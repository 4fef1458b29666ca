"""Workers of one Spark node without containers: start it on every node where `clara-rag[beam]` is installed.

    python -m pipelines.worker_pool --port 50000

Jobs that are submitted with `--environment_type=EXTERNAL --environment_config=localhost:50000` then get their Python
processes here. They learn the job's options and import the wheel that was staged with it, if one was. Nothing is
installed. Whoever can reach the port can start processes of this user: it listens on this machine alone unless --host
is given. SIGTERM or Ctrl-C ends the pool and its workers.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara.config.flags import Command
from clara.errors import InputError

_CHECK = "import apache_beam.runners.worker.sdk_worker_main, pipelines.worker_pool.template"


def parser() -> Command:
    """The command line."""
    parse = Command("pipelines.worker_pool", __doc__)
    parse.add_argument(
        "--port", type=int, default=50000, help="TCP port, the same on every node (default: %(default)s)"
    )
    parse.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)"
    )
    parse.add_argument("--dry-run", action="store_true", help="check that workers could start here, and stop")
    return parse


def check_workers() -> None:
    """Check that a worker can start in this environment.

    Raises:
        InputError: an import fails.
    """
    tried = subprocess.run([sys.executable, "-c", _CHECK], capture_output=True, text=True, check=False)
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or ["no error message"])[-1]
        raise InputError(
            f"{sys.executable}: a worker cannot start ({last}); install the wheel with its extra here: "
            "clara_rag-….whl[beam]"
        )


class Template:
    """A process that has imported everything, this environment's packages and some wheels, and forks workers."""

    def __init__(self, wheels: Sequence[Path]) -> None:
        paths = [*map(str, wheels), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "pipelines.worker_pool.template"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._lock = threading.Lock()
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"a process for workers ended with status {self.process.wait()}; see its error in the log of the pool"
            )
        return dict(json.loads(line))

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order and return its answer; see `pipelines.worker_pool.template`."""
        assert self.process.stdin is not None
        with self._lock:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            return self._read()

    def close(self) -> None:
        """End the process and its workers."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Workers:
    """The processes of a pool.

    Each runs in this environment, regardless of PATH, and gets the job's options from the runner.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._templates: dict[tuple[Path, ...], Template] = {}
        self._running: dict[tuple[str, str], tuple[Template, int]] = {}

    def start(self, request: Any) -> None:
        """Start the worker of a `StartWorkerRequest`."""
        from pipelines.worker_pool.wheel import provision, staged_wheels, worker_environment

        info = provision(request.provision_endpoint.url, request.worker_id)
        template = self.template(staged_wheels(info, request.artifact_endpoint.url, request.worker_id, self._folder))
        process = template.order({"start": worker_environment(request, info)})["process"]
        self._running[request.control_endpoint.url, request.worker_id] = template, process

    def template(self, wheels: Sequence[Path]) -> Template:
        """The process that forks workers with these wheels."""
        with self._lock:
            found = self._templates.get(tuple(wheels))
            if found is None or found.process.poll() is not None:
                found = self._templates[tuple(wheels)] = Template(wheels)
            return found

    def stop(self, request: Any) -> None:
        """Stop the worker of a `StopWorkerRequest`.

        The request names no runner, and two executors of a node may have workers of one name. Such workers are left
        running; they end when their runner closes the channel.
        """
        found = [key for key in list(self._running) if key[1] == request.worker_id]
        if len(found) == 1:
            template, process = self._running.pop(found[0])
            threading.Thread(target=template.order, args=({"stop": process},), daemon=True).start()

    def stop_all(self) -> None:
        """Stop all workers."""
        for template in self._templates.values():
            template.close()


def start_server(host: str, port: int, workers: Workers) -> tuple[Any, int]:
    """A server of Beam's worker-pool protocol, and its port.

    Raises:
        InputError: the address can't be listened on.
    """
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

    class Servicer(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
        def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802
            try:
                workers.start(request)
            except Exception:  # the boundary: the runner fails the task with it
                return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
            return beam_fn_api_pb2.StartWorkerResponse()

        def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802
            workers.stop(request)
            return beam_fn_api_pb2.StopWorkerResponse()

    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(Servicer(), server)
    try:
        found = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise InputError(
            f"--port {port}: {host}:{port} cannot be listened on; another pool may run there, or choose another port"
        ) from error
    server.start()
    return server, found


def main(argv: Sequence[str]) -> int:
    """Run the pool until a signal ends it."""
    args = parser().parse_args(argv)
    check_workers()
    if args.dry_run:
        print(f"workers can start with {sys.executable}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="clara-pool-") as folder:
        workers = Workers(Path(folder))
        workers.template([])  # the first worker need not wait for it
        server, port = start_server(args.host, args.port, workers)
        print(f"workers for jobs with --environment_type=EXTERNAL --environment_config={args.host}:{port}", flush=True)
        try:
            threading.Event().wait()
        finally:
            server.stop(0)
            workers.stop_all()
    return 0
