"""Where refreshes run beside training: a process of its own on this machine (under Ray, `training.launch` has tasks for it)."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from clara.artefact import atomic_write
from training.refresh import RefreshError, RefreshJob, RefreshResult


class Ticket(Protocol):
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
    """Where refreshes run beside training."""

    def start(self, job: RefreshJob, log: Path) -> Ticket:
        """Begin; `log` takes what the worker says, where it has no other place for it."""
        ...


class ProcessTicket:
    """A refresh in a process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], result: Path, log: Path) -> None:
        self.process = process
        self._result, self._log = result, log

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        """See `Ticket`."""
        try:
            status = self.process.wait(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        if status != 0 or not self._result.is_file():
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if self._log.is_file() else []
            ending = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise RefreshError(f"{ending}; {lines[-1] if lines else 'nothing said'} (log: {self._log})")
        return RefreshResult(**json.loads(self._result.read_text()))

    def stop(self) -> None:
        """See `Ticket`."""
        self.process.kill()
        self.process.wait()


class ProcessWorker:
    """Runs each refresh in a process of its own, which ends when this one does."""

    def start(self, job: RefreshJob, log: Path) -> ProcessTicket:
        """See `Worker`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        file, result = log.with_suffix(".job.json"), log.with_suffix(".result.json")
        result.unlink(missing_ok=True)
        atomic_write(file, json.dumps(dataclasses.asdict(job), indent=1))
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "training.refresh", "--job", str(file), "--result", str(result), "--parent", str(os.getpid())]
        with open(log, "ab") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(job.threads)}
            )
        return ProcessTicket(process, result, log)
