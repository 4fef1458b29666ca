"""`RunLog`: what every back end of run logging offers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class TrackingError(Exception):
    """A tracking store cannot be reached, read or written."""


@dataclass(frozen=True)
class Run:
    """What a run is created with.

    Attributes:
        experiment: the experiment that it belongs to; created on demand.
        name: for people.
        tags: by name.
        key: name of the tag that identifies the run: an earlier run with the same value is continued. Empty: every run
            is new.
    """

    experiment: str
    name: str
    tags: Mapping[str, str]
    key: str = ""


class RunLog(Protocol):
    """One run of a tracking store. Every method but `fail` raises `TrackingError` if the store does not accept it."""

    run_id: str

    def begin(self, run: Run) -> bool:
        """Create the run, or continue the one with the same key. Returns whether that one has finished."""
        ...

    def last_step(self, metric: str) -> int:
        """The last step for which a metric was logged; 0 if there is none."""
        ...

    def parameters(self, values: Mapping[str, object]) -> None:
        """Log settings. If a continued run has another value, the new one becomes the tag `resumed.NAME`."""
        ...

    def metrics(self, by_step: Mapping[int, Mapping[str, float]]) -> None:
        """Log figures by step and name."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        ...

    def file(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, into a folder of the run."""
        ...

    def finish(self) -> None:
        """End the run."""
        ...

    def fail(self) -> None:
        """End the run as failed, if the store answers."""
        ...


@contextmanager
def failing(log: RunLog) -> Iterator[None]:
    """Inside, any error ends the run as failed."""
    try:
        yield
    except BaseException:
        log.fail()
        raise
