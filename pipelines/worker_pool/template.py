"""A process of a worker pool with all imports done, which forks a worker on request without start-up time.

Spark starts new workers for every stage of a job and after every fault; importing torch for each would take longer than
the stage. The pool writes one line of JSON for each order to the standard input, `{"start": {variable: value}}`,
`{"stop": process id}` or `{"bury": true}`, and reads one back, `{"process": id}` or `{}`. When the input ends, so do
this process and its workers.
"""

import json
import os
import signal
import sys
import time
from typing import Any

# These imports are for the forked workers: each would take nine seconds of a processor.
from apache_beam.runners.worker import sdk_worker_main as sdk_worker_main

from pipelines.build_memory import graph as graph
from pipelines.worker_pool import worker

GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.05


class Template:
    """The forked workers; carries out orders."""

    def __init__(self) -> None:
        self._running: set[int] = set()

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        self._bury()
        if "start" in order:
            process = os.fork()
            if not process:
                _become_worker(order["start"])
            self._running.add(process)
            return {"process": process}
        if "stop" in order:
            self.stop([order["stop"]])
        return {}

    def stop(self, processes: list[int]) -> None:
        """End workers: SIGTERM first, SIGKILL for those that still run after `GRACE_SECONDS`."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + GRACE_SECONDS
            for process in self._running.intersection(processes):
                os.kill(process, number)
            while self._running.intersection(processes) and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
                self._bury()

    def stop_all(self) -> None:
        """End all workers."""
        self.stop(list(self._running))

    def _bury(self) -> None:
        self._running = {process for process in self._running if os.waitpid(process, os.WNOHANG) == (0, 0)}


def _become_worker(environment: dict[str, str]) -> None:
    """Run a worker in the new process; never returns."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # the pool reads answers there
        os.environ.update(environment)
        worker.main([])
    finally:
        os._exit(0)


def main() -> None:
    """Serve the pool until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the pool too, which ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    template = Template()
    print("{}", flush=True)  # everything is imported
    try:
        for line in iter(sys.stdin.readline, ""):
            print(json.dumps(template.answer(json.loads(line))), flush=True)
    finally:
        template.stop_all()


if __name__ == "__main__":
    main()
