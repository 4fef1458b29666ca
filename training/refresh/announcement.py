"""What rank 0 announces ahead of a step: that a version is ready, or that its refresh is given up. It may wait for one.

All decisions about waiting are made here, by `joint.refresh.switch` (asap, fixed or stop) and `when_stale`.
"""

import logging

from clara.config.refresh import Refresh
from training.refresh.attempts import Attempts
from training.refresh.version import Pending, Version

logger = logging.getLogger(__name__)


class Announcer:
    """Announcements of one run, on rank 0.

    An announcement is the number of a version that is ready, its negative if it is given up, else 0.
    """

    def __init__(self, settings: Refresh, attempts: Attempts, compressor_updates: int) -> None:
        self._settings, self._attempts, self._compressor_updates = settings, attempts, compressor_updates
        self._warned_version = self._waited_version = -1

    def announce(self, step: int, current: Version, pending: Pending) -> int:
        """The announcement ahead of a step (0-based); it takes effect with the next step."""
        if self._settings.switch == "fixed":
            return self._announce_at_fixed_step(step, current, pending)
        # A version that was waited for in vain is not waited for again at every step.
        waits = (
            self._settings.when_stale == "wait"
            and self._too_stale(step + 1, current)
            and self._waited_version != pending.number
        )
        number = self._attempts.poll(wait=waits, timeout_seconds=self._settings.wait_seconds)
        if waits and number == 0:
            self._waited_version = pending.number
            self._warn(step, current)
        return number

    def _announce_at_fixed_step(self, step: int, current: Version, pending: Pending) -> int:
        if step < pending.snapshot_step + self._settings.delta_steps - 1:
            # Restarts a failed attempt at once; the outcome is announced at its step.
            self._attempts.poll(wait=False, timeout_seconds=0.0)
            return 0
        number = self._attempts.poll(wait=True, timeout_seconds=self._settings.wait_seconds)
        return number or self.give_up(current, pending)

    def announce_after_stop(self, pending: Pending) -> int:
        """The announcement right after a snapshot under `switch = stop`, for which training waits."""
        number = self._attempts.poll(wait=True, timeout_seconds=self._settings.wait_seconds)
        if number == 0:
            logger.warning(
                "refresh: version %d is not ready after %.0f s; training continues without it",
                pending.number,
                self._settings.wait_seconds,
            )
        return number

    def finish(self, current: Version, pending: Pending) -> None:
        """After the last step: wait for the refresh under way, `wait_seconds` at most."""
        logger.info("refresh: waiting for version %d (at most %.0f s)", pending.number, self._settings.wait_seconds)
        if self._attempts.poll(wait=True, timeout_seconds=self._settings.wait_seconds) == 0:
            self.give_up(current, pending)

    def give_up(self, current: Version, pending: Pending) -> int:
        """End a refresh that was waited for in vain. Returns the announcement."""
        why = f"not ready after {self._settings.wait_seconds:.0f} s (joint.refresh.wait_seconds)"
        self._attempts.stop(why)
        logger.error(
            "refresh: version %d is %s and is given up; training stays on version %d",
            pending.number,
            why,
            current.number,
        )
        return -pending.number

    def warn_if_stale(self, step: int, current: Version, pending: Pending | None) -> None:
        """Log, once for each version, that it is too old, unless training waits for the next one."""
        when = self._settings.when_stale
        if self._too_stale(step, current) and (when == "warn" or (when == "wait" and pending is None)):
            self._warn(step, current)

    def _too_stale(self, step: int, current: Version) -> bool:
        return 0 < self._settings.max_staleness_steps < current.staleness(step, self._compressor_updates)

    def _warn(self, step: int, current: Version) -> None:
        if self._warned_version == current.number:
            return
        self._warned_version = current.number
        logger.warning(
            "refresh: at step %d MEMORY version %d lacks %d updates of the compressor, more than "
            "joint.refresh.max_staleness_steps = %d; training continues with it",
            step + 1,
            current.number,
            current.staleness(step, self._compressor_updates),
            self._settings.max_staleness_steps,
        )
