"""Progress of a corpus job, told through files in the directory that it writes to: it works on any runner and any number of machines."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from clara.memory import PLAN

PROGRESS = ".progress"
_POLL_SECONDS = 0.5
_TOLD_SECONDS = 1.0


class ShardProgress:
    """What a worker says of the shard that it compresses: chunks done, and how many there are. Best effort: nothing depends on it."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder, self._total = folder, total
        self._told = -float("inf")

    def tell(self, done: int) -> None:
        """Note how many chunks are done; at most once a second, but for the first and the last."""
        now = time.monotonic()
        if done not in (0, self._total) and now - self._told < _TOLD_SECONDS:
            return
        self._told = now
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / PROGRESS).write_text(f"{done} of {self._total}", encoding="ascii")
        except OSError:  # a disk that is full is for the shard itself to report
            return


@dataclass(frozen=True)
class Seen:
    """What the files tell: chunks done, chunks in all (known for the shards that have begun, estimated from these for the others); shards, too."""

    done: int
    total: int
    shards_done: int = 0
    num_shards: int = 0


@dataclass(frozen=True)
class Reading:
    """How far a corpus is read: pieces done and planned, documents and chunks in them."""

    units_done: int
    num_units: int
    documents: int
    chunks: int

    def told(self, seconds: float) -> str:
        """In words, after so many seconds."""
        left = seconds * (self.num_units - self.units_done) / self.units_done if self.units_done else 0.0
        rest = f", {tqdm.format_interval(left)} left" if self.units_done else ""
        return f"read {self.units_done:,} of {self.num_units:,} pieces, {self.documents:,} documents ({self.documents / seconds:,.1f} a second){rest}"


def seen(directory: Path, started: float) -> Seen | None:
    """Read the progress of all shards off a directory; None before the first has begun.

    Args:
        directory: the MEMORY that is being written.
        started: time in seconds since the epoch; what was told before does not count.
    """
    done, known, finished, shards = 0, 0, 0, []
    for file in directory.glob(f"*shard-*/{PROGRESS}"):
        try:
            if file.stat().st_mtime < started:
                continue
            said = re.fullmatch(r"(\d+) of (\d+)", file.read_text(encoding="ascii"))
        except OSError:
            continue
        if said:  # else it is being written just now
            done, known = done + int(said[1]), known + int(said[2])
            finished += said[1] == said[2]
            shards.append(file.parent.name)
    if not shards:
        return None
    num_shards = int(shards[0].rpartition("-")[2])
    return Seen(done, max(known, round(known * num_shards / len(shards))), finished, num_shards)


def shards_told(now: Seen, reading: Reading | None, chunks_a_second: float) -> str:
    """Shards done of planned, and documents a second where it is known how many chunks a document has."""
    rate = chunks_a_second * reading.documents / reading.chunks if reading and reading.chunks else 0.0
    return f"{now.shards_done:,} of {now.num_shards:,} shards" + (f", {rate:,.1f} documents a second" if rate else "")


def finished_shards(directory: Path, started: float) -> list[str]:
    """Names of the shards that were finished, or found finished, since `started`."""
    names = []
    for plan in directory.glob(f"*shard-*/{PLAN}"):
        try:
            if plan.stat().st_mtime >= started:
                names.append(plan.parent.name)
        except FileNotFoundError:
            continue
    return names


@contextmanager
def progress_bar(
    directory: Path,
    started: float,
    *,
    quiet: bool,
    what: str = "chunks",
    doing: str = "compress",
    reading: Callable[[], Reading] | None = None,
) -> Iterator[None]:
    """A bar of what is done, with rate and time left, while the job runs inside.

    Args:
        directory: the MEMORY that is being written.
        started: time in seconds since the epoch; what was told before does not count.
        quiet: no bar.
        what: is counted.
        doing: what is done with it; until the first shard begins, it is read.
        reading: tells how far that is; None: nobody knows.
    """
    if quiet:
        yield
        return
    stop = threading.Event()

    def watch() -> None:
        begun = 0.0
        with tqdm(total=0, unit=f" {what}", desc="read", dynamic_ncols=True) as bar:
            while True:
                ended = stop.wait(_POLL_SECONDS)
                now = seen(directory, started)
                read = reading() if reading else None
                if now is not None:
                    begun = begun or time.time()
                    bar.total = now.total
                    bar.set_description(doing, refresh=False)
                    if now.num_shards:
                        bar.set_postfix_str(shards_told(now, read, now.done / max(time.time() - begun, _POLL_SECONDS)), refresh=False)
                    bar.update(now.done - bar.n)
                elif read:
                    bar.set_description_str(read.told(max(time.time() - started, _POLL_SECONDS)))
                if ended:
                    return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
