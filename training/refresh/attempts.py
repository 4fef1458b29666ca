"""Attempts at one refresh, on rank 0: started, polled, ended when they hang, restarted when they fail."""

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

from clara.config.refresh import Refresh
from clara.errors import InputError
from clara.storage.folders import atomic_write
from training.loop.lines import Lines, lines_of
from training.loop.run_state import noted_states
from training.refresh.check_result import check_result
from training.refresh.job import RefreshError, RefreshJob, RefreshResult, expected_fingerprint, fingerprint_of
from training.refresh.process import RefreshHandle, Worker
from training.refresh.retention import discard
from training.refresh.version import Pending

logger = logging.getLogger(__name__)
_LOST = "lost-tries.jsonl"


def lost_tries(run: Path) -> list[dict[str, Any]]:
    """Failed attempts of a run: `number` of the version, `try`, `seconds` until its end was seen, and `why`.

    They failed, were given up, or were ended because all is encoded again. One that was under way when the run was
    killed is not among them; one that the resumed run made again counts twice, as it was done twice.
    """
    return lines_of(run / _LOST)


class _NotStarted:
    """The handle of an attempt that could not begin, most often for lack of room."""

    def __init__(self, why: str) -> None:
        self._why = why

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        """See `training.refresh.process.RefreshHandle`."""
        raise RefreshError(self._why)

    def stop(self) -> None:
        """See `training.refresh.process.RefreshHandle`."""


class Attempts:
    """Of the version that is being made; where none is, nothing happens.

    Attributes:
        ready: what was made, once it is there and right.
        lost_seconds: of failed attempts; the caller resets it.
        why: the last of these failed.
    """

    def __init__(self, settings: Refresh, run: Path, worker: Worker | None) -> None:
        self._settings, self._run, self._worker = settings, run, worker
        self._lines = Lines(run / _LOST)
        self.ready: RefreshResult | None = None
        self.lost_seconds = 0.0
        self.why = ""
        self._fallback = ""
        self._pending = Pending(0, 0)
        self._job: RefreshJob | None = None
        self._handle: RefreshHandle | None = None
        self._count, self._began = 0, 0.0
        self._outcome = 0

    def begin(self, pending: Pending, job: RefreshJob, *, fallback: str = "") -> None:
        """Start the first attempt. `fallback`: text logged if every attempt fails."""
        self._fallback = fallback or f"training stays on version {pending.number - 1}"
        self._pending, self._job, self._count, self._outcome = pending, job, 0, 0
        self._start(job)

    def abandon(self, pending: Pending, why: str) -> None:
        """Give up a version before its first attempt, as there is no snapshot to make it from."""
        self._pending, self._outcome = pending, -pending.number
        logger.error(
            "refresh: no snapshot for version %d (%s); training stays on version %d",
            pending.number,
            why,
            pending.number - 1,
        )

    def _start(self, job: RefreshJob) -> None:
        if self._worker is None:
            raise RuntimeError("rank 0 has no worker for refreshes")
        number = self._pending.number
        self._count += 1
        self._began = time.monotonic()
        self.ready = None
        try:
            self._note.unlink(missing_ok=True)
            self._handle = self._worker.start(job, self._run / f"refresh-v{number}.log")
        except (RefreshError, InputError, OSError) as error:
            self._handle = _NotStarted(str(error))
        logger.info(
            "refresh: version %d begins (snapshot after step %d, try %d)",
            number,
            self._pending.snapshot_step,
            self._count,
        )

    @property
    def _note(self) -> Path:
        return self._run / f"refresh-v{self._pending.number}.json"

    def poll(self, *, wait: bool, timeout_seconds: float) -> int:
        """Number of the version once it is ready, its negative once its attempts are used up, else 0.

        With `wait`, it returns 0 only after the timeout.

        Asked again, it says the same.
        """
        if not self._outcome:
            self._outcome = self._look(wait=wait, timeout_seconds=timeout_seconds)
        return self._outcome

    def _look(self, *, wait: bool, timeout_seconds: float) -> int:
        number, deadline = self._pending.number, time.monotonic() + timeout_seconds
        while self._handle is not None and self._job is not None:
            try:
                made = self._handle.result(timeout_seconds=1.0 if wait else 0.0)
                if made is None:
                    self._end_overdue(self._handle)
                else:
                    check_result(self._job, made)
                    self._write_note(made)
            except (RefreshError, InputError, OSError) as failure:
                logger.warning("refresh: try %d of version %d failed: %s", self._count, number, failure)
                self._note_loss(str(failure))
                if self._count >= self._settings.max_attempts:
                    self._discard()
                    logger.error("refresh: version %d is given up; %s", number, self._fallback)
                    return -number
                self._start(self._job)
                if not wait:
                    return 0
                continue
            if made is not None:
                self.ready = made
                made.log(number)
                return number
            if not wait or time.monotonic() > deadline:
                return 0
        return 0

    def _end_overdue(self, handle: RefreshHandle) -> None:
        """End an attempt that hangs or finds no room, so that later versions can be made.

        Raises:
            RefreshError: it took too long, and was ended.
        """
        if time.monotonic() - self._began > self._settings.max_seconds:
            handle.stop()
            raise RefreshError(
                f"not ready {self._settings.max_seconds:g} s after it began (joint.refresh.max_seconds), and ended"
            )

    def stop(self, why: str) -> None:
        """End the attempt under way, if there is one, and discard it."""
        if self._handle is not None and not self._outcome:
            self._handle.stop()
            self._note_loss(why)
            self._discard()
        self.forget()

    def _discard(self) -> None:
        """Delete a version that is given up: on a full disk the next run state and CHECKPOINT need the room."""
        if (job := self._job) is None:
            return
        try:
            fingerprint = expected_fingerprint(job.checkpoint, job.backbone, fingerprint_of(job.parent)).hash
        except InputError:
            fingerprint = ""
        discard(Path(job.memory).parent, self._run, self._pending.number, fingerprint, states=noted_states(self._run))

    def forget(self) -> None:
        """What was made is taken, or given up."""
        self._handle = self._job = None
        self._outcome = 0

    def _note_loss(self, why: str) -> None:
        seconds = time.monotonic() - self._began
        self.lost_seconds += seconds
        self.why = why
        self._lines.add({"number": self._pending.number, "try": self._count, "seconds": seconds, "why": why})

    def finish(self) -> None:
        """Write what is kept of lost tries; see `Lines.finish`."""
        self._lines.finish()

    def _write_note(self, result: RefreshResult) -> None:
        """Keep what a refresh made for the report."""
        took: dict[str, float] = {"tries": self._count}
        if self._pending.asked_at:
            took["ready_seconds"] = self._ready_seconds(result)
        atomic_write(
            self._note,
            json.dumps(dataclasses.asdict(self._pending) | dataclasses.asdict(result) | took, indent=1) + "\n",
        )

    def _ready_seconds(self, made: RefreshResult) -> float:
        """From the request to readiness: waiting for room, failed tries and restarts of the run included."""
        # Nothing waits for the last re-encoding, which has no time of request.
        return max(made.seconds, made.finished_at - self._pending.asked_at) if self._pending.asked_at else made.seconds

    def figures(self) -> dict[str, float]:
        """Of what is ready, for the step that switches to it."""
        if self.ready is None:
            return {}
        return self.ready.figures() | {
            "refresh_ready_seconds": self._ready_seconds(self.ready),
            "refresh_tries": float(self._count),
        }
