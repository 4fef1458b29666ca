"""Runs refreshes in one process of this machine, kept between refreshes (under Ray: `ray_actors`).

python -m training.refresh.process        (started by a run, which gives it jobs on its standard input, one a line)

It stays because importing everything takes longer than encoding a small MEMORY. Whatever goes wrong ends it, and the
next try has a new one.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from clara.config.flags import plain_parser
from clara.errors import command_line
from clara.processes import end_with_parent
from clara.storage.folders import atomic_write
from training.refresh.command import read_job
from training.refresh.job import RefreshError, RefreshJob, RefreshResult, run_and_release

_POLL_SECONDS = 0.02


class RefreshHandle(Protocol):
    """A refresh under way."""

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        """The result, or None if it is not there within the time.

        Raises:
            RefreshError: it ended without one.
        """
        ...

    def stop(self) -> None:
        """End it, if it still runs."""
        ...


class Worker(Protocol):
    """Where refreshes run beside training, one at a time."""

    def start(self, job: RefreshJob, log: Path) -> RefreshHandle:
        """Begin; `log` takes what the worker says, where it has no other place for it."""
        ...


class ProcessHandle:
    """A refresh in a process of this machine."""

    def __init__(self, process: subprocess.Popen[str], result: Path, log: Path) -> None:
        self.process = process
        self._result, self._log = result, log

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        """See `RefreshHandle`."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            # In this order: what was finished before the process ended counts.
            status = self.process.poll()
            if self._result.is_file():
                return RefreshResult(**json.loads(self._result.read_text()))
            if status is not None:
                lines = (
                    self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    if self._log.is_file()
                    else []
                )
                ending = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
                raise RefreshError(f"{ending}; {lines[-1] if lines else 'nothing said'} (log: {self._log})")
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """See `RefreshHandle`."""
        self.process.kill()
        self.process.wait()


class ProcessWorker:
    """Runs refreshes in a separate process, which ends when this one does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self, job: RefreshJob, log: Path) -> ProcessHandle:
        """See `Worker`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        file, result = log.with_suffix(".job.json"), log.with_suffix(".result.json")
        result.unlink(missing_ok=True)
        atomic_write(file, json.dumps(dataclasses.asdict(job), indent=1))
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = _begin(job.threads, log)
        try:
            print(json.dumps([str(file), str(result), str(log)]), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._process.wait()  # it died a moment ago, which the handle reports
        return ProcessHandle(self._process, result, log)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _begin(threads: int, log: Path) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(log, "ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "training.refresh.process", "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            text=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)},
        )


# --- in that process -------------------------------------------------------------------------------------------------


def serve(lines: Iterable[str]) -> None:
    """Run jobs, each given by a line with the paths of the job, its result and its log, until the input ends."""
    for line in lines:
        job, result, log = json.loads(line)
        with open(log, "ab") as stream:
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        atomic_write(result, json.dumps(dataclasses.asdict(run_and_release(read_job(job))), indent=1) + "\n")


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("training.refresh.process", __doc__)
    parser.add_argument(
        "--parent",
        type=int,
        default=0,
        help="process id; end when it is no longer the parent (default: at the last line)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say that jobs would be waited for, and stop")
    options = parser.parse_args(argv)
    if options.dry_run:
        print('would do one job for each line ["JOB.json", "RESULT.json", "LOG"] of standard input')
        return 0
    if options.parent:
        end_with_parent(options.parent)
    serve(sys.stdin)
    return 0


if __name__ == "__main__":
    command_line(main)
