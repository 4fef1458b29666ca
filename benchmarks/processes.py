"""What a command and all its processes took: time, and memory sampled while it ran."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass
class Usage:
    """Seconds, processor seconds, and peaks in bytes. Shared pages are divided in PSS, so that it may be summed.

    Attributes:
        seconds: wall clock.
        processor_seconds: of all processes together, as far as they were seen.
        pss: peak of the sum over all processes.
        rss: the same of RSS, which counts shared pages once a process.
        private: peak of the sum of pages that no file backs: what only swapping could take back.
        root: peak PSS of the command's own process.
        largest: peak PSS of any of its children.
        status: exit status.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    pss: int = 0
    rss: int = 0
    private: int = 0
    root: int = 0
    largest: int = 0
    status: int = 0
    samples: list[tuple[float, int]] = field(default_factory=list)

    def join(self, other: "Usage") -> "Usage":
        """Of two runs one after the other: seconds add up, peaks are the larger ones."""
        peaks = {
            name: max(getattr(self, name), getattr(other, name))
            for name in ("pss", "rss", "private", "root", "largest")
        }
        later = [(self.seconds + at, value) for at, value in other.samples]
        spent = self.processor_seconds + other.processor_seconds
        return Usage(
            seconds=self.seconds + other.seconds,
            processor_seconds=spent,
            status=other.status,
            samples=[*self.samples, *later],
            **peaks,
        )


def _memory(process: psutil.Process) -> tuple[int, int, int]:
    """PSS, RSS and anonymous bytes of one process; zeros where it has just ended."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0, 0
    found = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines[1:])}
    return found.get("Pss", 0), found.get("Rss", 0), found.get("Anonymous", 0)


def _processor_seconds(process: psutil.Process) -> float:
    try:
        spent = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(spent.user + spent.system)


def _watch(root: psutil.Process, usage: Usage, stop: threading.Event, every: float, started: float) -> None:
    spent: dict[int, float] = {}
    while not stop.wait(every):
        try:
            children = root.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for process in (root, *children):
            spent[process.pid] = max(spent.get(process.pid, 0.0), _processor_seconds(process))
        usage.processor_seconds = sum(spent.values())
        own = _memory(root)
        others = [_memory(child) for child in children]
        pss, rss, private = (own[i] + sum(other[i] for other in others) for i in range(3))
        usage.pss, usage.rss, usage.private = max(usage.pss, pss), max(usage.rss, rss), max(usage.private, private)
        usage.root = max(usage.root, own[0])
        usage.largest = max([usage.largest, *(other[0] for other in others)])
        usage.samples.append((round(time.monotonic() - started, 1), pss))


def run_measured(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    every: float = 0.3,
    limit: float = 0.0,
    log: Path | None = None,
) -> Usage:
    """Run a command; kill it and all its processes after `limit` seconds (0: no limit; the status is −9 then).

    Raises:
        subprocess.CalledProcessError: it failed by itself.
    """
    usage, started, stop = Usage(), time.monotonic(), threading.Event()
    with open(log or os.devnull, "ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **(environment or {})}, stdout=output, stderr=output
        )
        watch = threading.Thread(
            target=_watch, args=(psutil.Process(process.pid), usage, stop, every, started), daemon=True
        )
        watch.start()
        try:
            usage.status = process.wait(limit or None)
        except subprocess.TimeoutExpired:
            process.kill()
            usage.status = process.wait()
        finally:
            stop.set()
            watch.join()
    usage.seconds = time.monotonic() - started
    if usage.status and usage.status != -9:
        raise subprocess.CalledProcessError(usage.status, list(command))
    return usage


def python(module: str, *arguments: str) -> list[str]:
    """The command line of a module under this interpreter."""
    return [sys.executable, "-m", module, *arguments]
