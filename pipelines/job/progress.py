"""Progress of a corpus job, reported through files in its output: works on any runner and number of machines."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from clara.progress import Progress
from clara.storage.base import Folder
from clara.storage.bucket import Bucket
from clara.storage.folders import Local
from clara.storage.paths import Name, is_url

PROGRESS = ".progress"
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 1.0
_BUCKET_SECONDS = 10.0  # requests cost money


def _folder(directory: Name) -> Folder:
    """The output, without retries: nothing depends on progress."""
    return Bucket(str(directory), patient=False) if is_url(directory) else Local(Path(directory))


class ShardProgress:
    """Reports how many chunks of a shard are compressed. Best effort: nothing depends on it."""

    def __init__(self, directory: Name, shard: str, total: int) -> None:
        self._directory, self._shard, self._total = directory, shard, total
        self._seconds = _BUCKET_SECONDS if is_url(directory) else _REPORT_SECONDS
        self._last_report = -float("inf")

    def report(self, done: int) -> None:
        """Report finished chunks: at most once a second, every ten seconds into a bucket; always the first and last."""
        now = time.monotonic()
        if done not in (0, self._total) and now - self._last_report < self._seconds:
            return
        self._last_report = now
        with suppress(Exception):  # a full disk or a store that does not answer is reported when the shard is written
            _folder(self._directory).write(f"{PROGRESS}/{self._shard}", f"{done} of {self._total}".encode())


@dataclass(frozen=True)
class Seen:
    """Progress read from the files: chunks done and in total (estimated for shards not yet begun), and shards."""

    done: int
    total: int
    shards_done: int
    num_shards: int

    def describe(self, reading: "Reading | None", chunks_a_second: float) -> str:
        """Text: shards done of planned, and documents per second if the chunks per document are known."""
        rate = chunks_a_second * reading.documents / reading.chunks if reading and reading.chunks else 0.0
        return f"{self.shards_done:,} of {self.num_shards:,} shards" + (
            f", {rate:,.1f} documents a second" if rate else ""
        )


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


class JobProgress:
    """The progress of all shards, read from the output; the files are removed before and after the job."""

    def __init__(self, directory: Name) -> None:
        self._folder = _folder(directory)
        self._known: dict[str, tuple[str, int, int]] = {}

    def clear(self) -> None:
        """Remove the files."""
        with suppress(Exception):
            self._folder.remove(self._folder.files(PROGRESS))

    def seen(self) -> Seen | None:
        """Read the files, in a bucket those that changed since the last call; None before the first shard has begun."""
        with suppress(Exception):  # a file that is being replaced, or a store that does not answer: next time
            for name, stored in self._folder.files(PROGRESS).items():
                if name.startswith(f"{PROGRESS}/.") or (stored.tag and self._known.get(name, ("",))[0] == stored.tag):
                    continue
                text = (self._folder.read(name) or b"").split(b" of ")
                self._known[name] = (stored.tag, int(text[0]), int(text[1]))
        if not self._known:
            return None
        shards = [(done, total) for _, done, total in self._known.values()]
        done, total = sum(done for done, _ in shards), sum(total for _, total in shards)
        num_shards = int(next(iter(self._known)).rpartition("-")[2])
        return Seen(
            done, max(total, round(total * num_shards / len(shards))), sum(d == t for d, t in shards), num_shards
        )


@contextmanager
def progress_bar(
    directory: Name,
    *,
    quiet: bool,
    what: str = "chunks",
    doing: str = "compress",
    reading: Callable[[], Reading] | None = None,
) -> Iterator[None]:
    """Show a progress bar with rate and time left while the job runs in the context.

    Args:
        directory: the artefact that is being written, a directory or a URL.
        quiet: no bar.
        what: the counted items.
        doing: description of the bar; "read" until the first shard begins.
        reading: returns the progress of reading; None: unknown.
    """
    job, started, begun, stop = JobProgress(directory), time.time(), 0.0, threading.Event()
    job.clear()

    def show(bar: Progress) -> None:
        nonlocal begun
        now, read = job.seen(), reading() if reading else None
        if now is not None:
            begun = begun or time.time()
            bar.total = now.total
            bar.set_description_str(doing, refresh=False)
            chunks_a_second = now.done / max(time.time() - begun, _POLL_SECONDS)
            bar.set_postfix_str(now.describe(read, chunks_a_second), refresh=False)
            bar.update(now.done - bar.n)
        elif read:
            bar.set_description_str(read.describe(max(time.time() - started, _POLL_SECONDS)))

    def watch() -> None:
        with Progress(0, "read", f" {what}") as bar:
            while not stop.wait(_BUCKET_SECONDS if is_url(directory) else _POLL_SECONDS):
                show(bar)
            show(bar)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    if not quiet:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if not quiet:
            thread.join()
        job.clear()
