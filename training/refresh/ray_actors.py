"""Runs refreshes in Ray actors with their own shares of the cluster, kept between refreshes.

Several share a whole encoding out, shard by shard; when all are through, the first makes the version of their
shards.
"""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from clara.processes import exists
from training.refresh.job import RefreshError, RefreshJob, RefreshResult, encode_share, run_and_release

logger = logging.getLogger(__name__)
_ANSWER_SECONDS = 5.0
_END_SECONDS = 10.0
_MOMENT_SECONDS = 1.0
_POLL_SECONDS = 0.02


class Refresher:
    """The actor that runs refreshes."""

    def encode_share(self, job: RefreshJob, share: int, of: int) -> None:
        """See `training.refresh.job.encode_share`."""
        encode_share(job, share, of)

    def run(self, job: RefreshJob) -> RefreshResult:
        """See `training.refresh.job.run_job`."""
        return run_and_release(job)

    def answer(self) -> tuple[str, int]:
        """Show that it lives: node and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


class RayHandle:
    """A refresh in the actors."""

    def __init__(self, actors: Sequence[Any], job: RefreshJob) -> None:
        self._actors, self._job = actors, job
        self._asked = [actor.answer.remote() for actor in actors]
        shared = len(actors) > 1 and not job.selection
        self._shares = (
            [actor.encode_share.remote(job, number, len(actors)) for number, actor in enumerate(actors)]
            if shared
            else []
        )
        self._whole = None if shared else actors[0].run.remote(job)
        self.ended = False

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        """See `training.refresh.process.RefreshHandle`."""
        try:
            if self._whole is None:
                done, under_way = ray.wait(self._shares, num_returns=len(self._shares), timeout=timeout_seconds)
                ray.get(done, timeout=_ANSWER_SECONDS)  # what one of them failed of is raised at once
                if under_way:
                    return None
                self._whole = self._actors[0].run.remote(self._job)
            ready, _ = ray.wait([self._whole], timeout=timeout_seconds)
            if not ready:
                return None
            found: RefreshResult = ray.get(self._whole, timeout=_ANSWER_SECONDS)
        except RayError as error:
            self.stop()
            # The last line says what failed where; the rest is Ray's stack, which its own log keeps.
            raise RefreshError(str(error).strip().splitlines()[-1]) from error
        return found

    def stop(self) -> None:
        """See `training.refresh.process.RefreshHandle`."""
        self.ended = True
        begun: list[tuple[str, int]] = []
        try:
            begun = self._begun()
            for actor in self._actors:
                ray.kill(actor)
            under_way = [*self._shares, *([] if self._whole is None else [self._whole])]
            ray.wait(under_way, num_returns=len(under_way), timeout=_END_SECONDS)
        except RayError as error:
            logger.warning(
                "refresh: whether its actors have ended is not known: %s", str(error).strip().splitlines()[-1]
            )
        _wait_until_gone(begun)

    def _begun(self) -> list[tuple[str, int]]:
        """Node and process id of the actors that had room."""
        found: list[tuple[str, int]] = []
        answered, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=_MOMENT_SECONDS)
        for answer in answered:
            with suppress(RayError):  # one that is lost
                found.append(ray.get(answer, timeout=_MOMENT_SECONDS))
        return found


def _wait_until_gone(processes: Sequence[tuple[str, int]]) -> None:
    """Wait until the processes are gone.

    Ray calls an actor dead a moment before its process is, and a last file could still arrive where all are deleted
    next.
    """
    here, deadline = ray.get_runtime_context().get_node_id(), time.monotonic() + _END_SECONDS
    for node, process in processes:
        while node == here and exists(process) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    if any(node != here for node, _ in processes):
        time.sleep(_MOMENT_SECONDS)  # which no one can look at from here


class RayWorker:
    """Runs refreshes in actors, which end with the rank that started them.

    If one died, all are replaced, on any nodes that have room.
    """

    def __init__(self, num_cpus: float, num_gpus: float, num_workers: int = 1) -> None:
        # Without its own strategy the actor would wait for room inside the ranks' placement group, where there is
        # none.
        self._refresher = ray.remote(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, scheduling_strategy="DEFAULT"
        )(Refresher)
        self._num_workers, self._actors = num_workers, list[Any]()
        self._handle: RayHandle | None = None

    def start(self, job: RefreshJob, log: Path) -> RayHandle:
        """See `training.refresh.process.Worker`; Ray keeps the log.

        Raises:
            RefreshError: the cluster does not answer.
        """
        try:
            if self._handle is None or self._handle.ended or not self._answers():
                self._actors = [self._refresher.remote() for _ in range(self._num_workers)]
            self._handle = RayHandle(self._actors, job)
        except RayError as error:
            raise RefreshError(str(error).strip().splitlines()[-1]) from error
        return self._handle

    def _answers(self) -> bool:
        """Whether the actors of the last refresh are still there; a node may have been lost since."""
        try:
            ray.get([actor.answer.remote() for actor in self._actors], timeout=_ANSWER_SECONDS)
        except RayError:
            for actor in self._actors:
                ray.kill(actor)
            return False
        return True
