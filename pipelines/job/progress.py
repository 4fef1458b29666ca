"""Progress of a corpus job, reported through files in its output: works on any runner and number of machines."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from clara.memory.shards import PLAN
from clara.progress import Progress
from clara.storage.bucket import Bucket
from clara.storage.paths import Name, is_url

PROGRESS = ".progress"
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 1.0
_BUCKET_SECONDS = 10.0  # requests cost money


class ShardProgress:
    """Reports how many chunks of a shard are compressed. Best effort: nothing depends on it."""

    def __init__(self, directory: Name, shard: str, total: int) -> None:
        self._directory, self._shard, self._total = directory, shard, total
        self._last_report = -float("inf")

    def report(self, done: int) -> None:
        """Report finished chunks: at most once a second, every ten seconds into a bucket; always the first and last."""
        now = time.monotonic()
        bucket = is_url(self._directory)
        if done not in (0, self._total) and now - self._last_report < (_BUCKET_SECONDS if bucket else _REPORT_SECONDS):
            return
        self._last_report = now
        if bucket:
            _write_to_bucket(str(self._directory), self._shard, f"{done} of {self._total}")
            return
        try:
            folder = Path(self._directory) / self._shard
            folder.mkdir(parents=True, exist_ok=True)
            (folder / PROGRESS).write_text(f"{done} of {self._total}", encoding="ascii")
        except OSError:  # a full disk is reported when the shard is written
            return


def _write_to_bucket(url: str, shard: str, text: str) -> None:
    try:
        Bucket(url, patient=False).write(f"{PROGRESS}/{shard}", text.encode())
    except Exception:  # writing the shard waits for the store
        return


@dataclass(frozen=True)
class Seen:
    """Progress read from the files: chunks done and in total (estimated for shards not yet begun), and shards."""

    done: int
    total: int
    shards_done: int = 0
    num_shards: int = 0


@dataclass(frozen=True)
class Reading:
    """Progress of reading a corpus: units done and planned, documents and chunks in them."""

    units_done: int
    num_units: int
    documents: int
    chunks: int

    def describe(self, seconds: float) -> str:
        """Text for the progress bar, after so many seconds."""
        left = seconds * (self.num_units - self.units_done) / self.units_done if self.units_done else 0.0
        rest = f", {tqdm.format_interval(left)} left" if self.units_done else ""
        pieces = f"{self.units_done:,} of {self.num_units:,} pieces"
        return f"read {pieces}, {self.documents:,} documents ({self.documents / seconds:,.1f} a second){rest}"


def seen(directory: Path, started: float) -> Seen | None:
    """Read the progress of all shards from a directory; None before the first has begun.

    Args:
        directory: the MEMORY that is being written.
        started: time in seconds since the epoch; earlier reports are ignored.
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


def describe_shards(now: Seen, reading: Reading | None, chunks_a_second: float) -> str:
    """Text: shards done of planned, and documents per second if the chunks per document are known."""
    rate = chunks_a_second * reading.documents / reading.chunks if reading and reading.chunks else 0.0
    return f"{now.shards_done:,} of {now.num_shards:,} shards" + (f", {rate:,.1f} documents a second" if rate else "")


class BucketProgress:
    """`seen` for a URL; the progress objects are removed before and after the job."""

    def __init__(self, url: str) -> None:
        self._bucket = Bucket(url, patient=False)
        self._known: dict[str, tuple[str, int, int]] = {}

    def clear(self) -> None:
        """Remove the progress objects."""
        try:
            self._bucket.remove(self._bucket.files(PROGRESS))
        except Exception:  # as above
            return

    def seen(self) -> Seen | None:
        """Read the objects that changed since the last call."""
        try:
            for name, stored in self._bucket.files(PROGRESS).items():
                if self._known.get(name, ("", 0, 0))[0] != stored.tag and (raw := self._bucket.read(name)):
                    text, _, of = raw.decode().partition(" of ")
                    self._known[name] = (stored.tag, int(text), int(of))
        except Exception:  # as above
            pass
        if not self._known:
            return None
        done, known = (
            sum(done for _, done, _ in self._known.values()),
            sum(total for _, _, total in self._known.values()),
        )
        num_shards = int(next(iter(self._known)).rpartition("-")[2])
        return Seen(done, max(known, round(known * num_shards / len(self._known))))


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
    directory: Name,
    started: float,
    *,
    quiet: bool,
    what: str = "chunks",
    doing: str = "compress",
    reading: Callable[[], Reading] | None = None,
) -> Iterator[None]:
    """Show a progress bar with rate and time left while the job runs in the context.

    Args:
        directory: the MEMORY that is being written, or a URL.
        started: time in seconds since the epoch; earlier reports are ignored.
        quiet: no bar.
        what: the counted items.
        doing: description of the bar; "read" until the first shard begins.
        reading: returns the progress of reading; None: unknown.
    """
    bucket = BucketProgress(str(directory)) if is_url(directory) else None
    if bucket:
        bucket.clear()
    if quiet:
        yield
        return
    stop = threading.Event()

    def watch() -> None:
        begun = 0.0
        with Progress(0, "read", f" {what}") as bar:
            while True:
                ended = stop.wait(_BUCKET_SECONDS if bucket else _POLL_SECONDS)
                now = bucket.seen() if bucket else seen(Path(directory), started)
                read = reading() if reading else None
                if now is not None:
                    begun = begun or time.time()
                    bar.total = now.total
                    bar.set_description_str(doing, refresh=False)
                    if now.num_shards:
                        bar.set_postfix_str(
                            describe_shards(now, read, now.done / max(time.time() - begun, _POLL_SECONDS)),
                            refresh=False,
                        )
                    bar.update(now.done - bar.n)
                elif read:
                    bar.set_description_str(read.describe(max(time.time() - started, _POLL_SECONDS)))
                if ended:
                    return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if bucket:
            bucket.clear()
