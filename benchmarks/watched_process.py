"""A process with a time limit, whose peak memory is watched."""

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any


class Watched:
    """A finished process and its peak memory: resident in total, and the part that is not a mapped file."""

    def __init__(self, command: list[str], log: Path, limit_seconds: float, threads: int) -> None:
        self.seconds, self.peak_bytes, self.own_bytes, self.ended = 0.0, 0, 0, "ok"
        began = time.monotonic()
        with open(log, "ab") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
            )
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(process.pid, stop), daemon=True)
        watcher.start()
        try:
            status = process.wait(timeout=limit_seconds)
            self.ended = "ok" if status == 0 else f"exit status {status}, see {log.name}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.ended = f"not done after {limit_seconds:.0f} s"
        finally:
            stop.set()
            watcher.join()
        self.seconds = time.monotonic() - began

    def _watch(self, pid: int, stop: threading.Event) -> None:
        while not stop.wait(0.1):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                return
            status = {line.split(":")[0]: line.split() for line in lines}
            if "VmHWM" in status:
                self.peak_bytes = max(self.peak_bytes, int(status["VmHWM"][1]) * 1024)
                self.own_bytes = max(self.own_bytes, int(status["RssAnon"][1]) * 1024)

    def figures(self) -> dict[str, Any]:
        return {
            "ended": self.ended,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "peak_own_bytes": self.own_bytes,
        }
