"""The last re-encoding of a joint run (`joint.refresh.final`), with the compressor after the last step."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clara.config.tree import Config
from training.refresh.attempts import Attempts
from training.refresh.process import Worker
from training.refresh.version import Pending, Version
from training.refresh.versions import Versions
from training.run.recipe import LOCK_SECONDS, RunPaths, sole_user


@dataclass(frozen=True)
class FinishedRun:
    """What a run that made all its steps left.

    Attributes:
        state: of its versions after the last step.
        refreshes: notes about all that came to something, ascending.
        current: number of the newest version.
        memory: of that version.
        index: of that version.
        lag_steps: updates of the compressor that its oldest row lacks.
    """

    state: Mapping[str, Any]
    refreshes: list[dict[str, Any]]
    current: int
    memory: str
    index: str
    lag_steps: int


def finished_run(config: Config, where: RunPaths) -> FinishedRun:
    """What the run of a configuration left; it has made all its steps."""
    trained = config.joint.compressor_updates
    state = json.loads((where.run / "versions.json").read_text())
    current = state["current"]
    notes = [json.loads(p.read_text()) for p in where.run.glob("refresh-v*.json") if p.name.count(".") == 1]
    refreshes = sorted(notes, key=lambda note: int(note["number"]))
    number = int(current["number"])
    if refreshes and (newest := int(refreshes[-1]["number"])) > number:
        # Ready after the last step, so that no step used it.
        memory, index = (str(where.output / f"{kind}-v{newest}") for kind in ("memory", "index"))
        return FinishedRun(state, refreshes, newest, memory, index, max(0, trained - int(refreshes[-1]["oldest_step"])))
    # Version 0, which the run began with, has no note.
    oldest = next(
        (note["oldest_step"] for note in refreshes if int(note["number"]) == number), current["snapshot_step"]
    )
    return FinishedRun(state, refreshes, number, current["memory"], current["index"], max(0, trained - int(oldest)))


def final_refresh_due(config: Config, found: FinishedRun) -> bool:
    """Whether the last re-encoding is asked for and still to be made."""
    return config.joint.refresh.final and found.lag_steps > 0


def encode(config: Config, where: RunPaths, worker: Worker, *, threads: int) -> str:
    """Make the last re-encoding, if it is due, as a refresh is made. Returns why it failed, or "".

    Args:
        config: the root, of a run that has made all its steps.
        where: its directories.
        worker: where refreshes run.
        threads: torch threads.
    """
    found = finished_run(config, where)
    if not final_refresh_due(config, found):
        return ""
    with sole_user(where.run / "lock", wait_seconds=LOCK_SECONDS):
        versions = Versions(config, where.output, where.run, None, threads)
        versions.current = Version(**found.state["current"])
        number, steps = _next_number(found), config.joint.steps
        attempts = Attempts(config.joint.refresh, where.run, worker)
        attempts.begin(
            Pending(number, steps),
            versions.requests.job(number, versions.current, steps, checkpoint=where.checkpoint),
            fallback="MEMORY stays older than the CHECKPOINT",
        )
        return "" if attempts.poll(wait=True, timeout_seconds=math.inf) > 0 else attempts.why


def _next_number(found: FinishedRun) -> int:
    """The next unused version number; skips a cancelled refresh whose files may still arrive."""
    pending = int((found.state["pending"] or {"number": 0})["number"])
    return max(found.current, pending) + 1
