"""Workers of one node of a Spark cluster, without containers: start this on every node, in the environment where `clara-rag[beam]` is installed.

    python -m pipelines.worker_pool --port 50000

Jobs that are submitted with `--environment_type=EXTERNAL --environment_config=localhost:50000` then get their Python processes here. They learn
the job's options and import the wheel that was staged with it, if one was. Nothing is installed. Whoever can reach the port can start
processes of this user: it listens on this machine alone unless --host says otherwise. SIGTERM or Ctrl-C ends the pool and its workers.
"""

import argparse
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

from clara.errors import InputError, command_line

_CHECK = "import apache_beam.runners.worker.sdk_worker_main, pipelines.worker, pipelines.memory_job"
_GRACE_SECONDS, _BURY_SECONDS = 10, 5


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m pipelines.worker_pool",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parse.add_argument("--port", type=int, default=50000, help="TCP port, the same on every node (default: %(default)s)")
    parse.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    parse.add_argument("--dry-run", action="store_true", help="check that workers could start here, and stop")
    return parse


def check_workers() -> None:
    """See that a process of this environment can do a worker's work.

    Raises:
        InputError: something that it imports is missing.
    """
    tried = subprocess.run([sys.executable, "-c", _CHECK], capture_output=True, text=True, check=False)
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or ["no word"])[-1]
        raise InputError(f"{sys.executable}: a worker cannot start ({last}); install the wheel with its extra here: clara_rag-….whl[beam]")


class Workers:
    """The processes of a pool. Each is started in this environment, whatever PATH says, and told what the runner says of its job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}

    def start(self, request: Any) -> None:
        """Start the worker of a `StartWorkerRequest`."""
        from pipelines.staged_wheel import provision, staged_wheels, worker_environment

        info = provision(request.provision_endpoint.url, request.worker_id)
        wheels = staged_wheels(info, request.artifact_endpoint.url, request.worker_id, self._folder)
        environment = worker_environment(request, info, wheels, os.environ)
        # Its standard output would be nobody's: it goes where errors go.
        self._processes[request.control_endpoint.url, request.worker_id] = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker"], env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr
        )
        self.bury()

    def stop(self, request: Any) -> None:
        """Stop the worker of a `StopWorkerRequest`.

        The request names no runner, and two executors of a node may have workers of one name: these are left, and end as their runner's channel closes.
        """
        found = [key for key in self._processes if key[1] == request.worker_id]
        if len(found) == 1:
            threading.Thread(target=_end, args=(self._processes.pop(found[0]),), daemon=True).start()

    def stop_all(self) -> None:
        """Stop them all."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            _end(process)

    def bury(self) -> None:
        """Forget those that have ended."""
        for key, process in list(self._processes.items()):
            if process.poll() is not None:
                self._processes.pop(key, None)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
        server, port = start_server(args.host, args.port, workers)
        print(f"workers for jobs with --environment_type=EXTERNAL --environment_config={args.host}:{port}", flush=True)
        try:
            while not threading.Event().wait(_BURY_SECONDS):
                workers.bury()
        finally:
            server.stop(0)
            workers.stop_all()
    return 0


if __name__ == "__main__":
    command_line(main)
