"""Worker processes of the local runner, watched: when one is killed, the pipeline fails at once, where Beam's own would wait for it for ever."""

import contextlib
import logging
import os
import queue
import shlex
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner.worker_handlers import SubprocessSdkWorkerHandler, WorkerHandler
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker

from clara.errors import InputError

_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
_MAX_RUNS = 3
_ABORT_SECONDS = 0.5
_NOTICE_SECONDS = 3.0
_RUNNING: "set[WatchedWorkerHandler]" = set()
_STARTED = threading.Event()
_KILLED: "queue.Queue[str]" = queue.Queue()


class KilledWorkerError(RuntimeError):
    """A worker process ended before its work did: somebody, or the system for want of memory, killed it."""


class WatchedWorkerHandler(SubprocessSdkWorkerHandler):
    """Starts a worker process. When it is killed, the others are too, and whatever is asked of them fails."""

    def start_worker(self) -> None:
        """Start the process, and watch it."""
        self._stopped = threading.Event()
        handle, name = tempfile.mkstemp(prefix="worker-pid-")
        os.close(handle)
        self._pid_file = Path(name)
        # The shell's process becomes the worker's; Beam keeps its number to itself.
        command = f"echo $$ > {shlex.quote(name)}; {self._worker_command_line.decode()}".encode()
        self.worker = SubprocessSdkWorker(command, self.control_address, self.provision_info, self.worker_id)
        _RUNNING.add(self)
        _STARTED.set()
        self.worker_thread = threading.Thread(name="run_worker", target=self._watch, daemon=True)
        self.worker_thread.start()

    def _watch(self) -> None:
        try:
            self.worker.run()
        except RuntimeError as error:
            if self._stopped.is_set():
                return
            _KILLED.put(str(error))
            for other in _RUNNING - {self}:
                other.kill()
            while not self._stopped.wait(_ABORT_SECONDS):  # again and again: what is asked only now would wait, too
                self.control_conn.abort(KilledWorkerError(str(error)))

    def kill(self) -> None:
        """Kill the process, which may be busy for hours."""
        with contextlib.suppress(ValueError, OSError):
            os.kill(int(self._pid_file.read_text()), signal.SIGKILL)

    def close(self) -> None:
        """Let go of the process."""
        self._stopped.set()  # what ends from here on was not killed
        _RUNNING.discard(self)
        try:
            super().close()
        finally:
            self._pid_file.unlink(missing_ok=True)

    def stop_worker(self) -> None:
        """Wait until the process has ended."""
        self.worker_thread.join()


def killed_worker() -> str:
    """What is known of a worker that was killed, after a pipeline failed: the error itself may be that of any broken channel. Empty: none was."""
    try:
        return _KILLED.get(timeout=_NOTICE_SECONDS if _STARTED.is_set() else 0.01)
    except queue.Empty:
        return ""


def watch_workers() -> None:
    """Have the local runner watch its worker processes."""
    while not _KILLED.empty():
        _KILLED.get()
    WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(WatchedWorkerHandler)


def again_when_killed(run: Callable[[], Result], output: str) -> Result:
    """The result of a job that resumes: when one of its processes is killed, it is run again, with new ones, three times at most.

    Raises:
        InputError: processes were killed again and again.
    """
    for left in reversed(range(_MAX_RUNS)):
        try:
            return run()
        except KilledWorkerError as error:
            if not left:
                raise InputError(
                    f"--output {output}: in each of {_MAX_RUNS} runs a worker process was killed ({error}); most often the machine has too little "
                    "memory for so many: run the command again, which goes on where it stood, with a smaller --num-workers or --batch-tokens"
                ) from error
            _LOG.warning("a worker process was killed (%s); the job goes on with new ones", error)
    raise AssertionError("the last run returns or raises")
