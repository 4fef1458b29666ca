"""Where refreshes run beside ranks under Ray: an actor with its own share of the cluster, kept from one refresh to the next."""

import logging
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from training.refresh import RefreshError, RefreshJob, RefreshResult, run_and_release

logger = logging.getLogger(__name__)
_ANSWER_SECONDS = 5.0
_END_SECONDS = 10.0


class Refresher:
    """The actor."""

    def run(self, job: RefreshJob) -> RefreshResult:
        """See `training.refresh.run_job`."""
        return run_and_release(job)

    def answer(self) -> None:
        """Show that it lives."""


class RayTicket:
    """A refresh in the actor."""

    def __init__(self, actor: Any, job: RefreshJob) -> None:
        self._actor, self._reference = actor, actor.run.remote(job)
        self.ended = False

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        """See `training.refresh_worker.Ticket`."""
        try:
            ready, _ = ray.wait([self._reference], timeout=timeout_seconds)
            if not ready:
                return None
            found: RefreshResult = ray.get(self._reference, timeout=_ANSWER_SECONDS)
        except RayError as error:
            self.stop()
            # The last line says what failed where; the rest is Ray's stack, which its own log keeps.
            raise RefreshError(str(error).strip().splitlines()[-1]) from error
        return found

    def stop(self) -> None:
        """See `training.refresh_worker.Ticket`."""
        self.ended = True
        try:
            ray.kill(self._actor)
            # Else its last file could still arrive where all of them have just been deleted.
            ray.wait([self._reference], timeout=_END_SECONDS)
        except RayError as error:
            logger.warning("refresh: whether its actor has ended is not known: %s", str(error).strip().splitlines()[-1])


class RayWorker:
    """Runs refreshes in an actor, which ends when the rank that started it does. One that died is replaced, on any node that has room."""

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        # Without a strategy of its own the actor would wait for room inside the ranks' placement group, where there is none.
        self._refresher = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, scheduling_strategy="DEFAULT")(Refresher)
        self._actor: Any = None
        self._ticket: RayTicket | None = None

    def start(self, job: RefreshJob, log: Path) -> RayTicket:
        """See `training.refresh_worker.Worker`; Ray keeps the log.

        Raises:
            RefreshError: the cluster does not answer.
        """
        try:
            if self._ticket is None or self._ticket.ended or not self._answers():
                self._actor = self._refresher.remote()
            self._ticket = RayTicket(self._actor, job)
        except RayError as error:
            raise RefreshError(str(error).strip().splitlines()[-1]) from error
        return self._ticket

    def _answers(self) -> bool:
        """Whether the actor of the last refresh is still there; its node may have been lost since."""
        try:
            ray.get(self._actor.answer.remote(), timeout=_ANSWER_SECONDS)
        except RayError:
            ray.kill(self._actor)
            return False
        return True
