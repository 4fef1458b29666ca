"""MEMORY versions of a run: the one in use, the one being made, and the step at which all ranks switch.

Only rank 0 knows how far a refresh is. It announces the outcome in the sum that every step computes over the ranks
anyway: the number of the version that is ready, its negative if the refresh is given up, else 0. So every rank switches
before the same step, and no step mixes versions.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clara.config.tree import Config
from clara.index.search import MemoryIndex, OpenIndex, TwoLevels
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.model.model import ClaraModel
from clara.storage.manifest import manifest_hash
from training.loop.engine import Engine
from training.loop.lines import Lines
from training.loop.run_state import noted_states
from training.refresh.ages import Ages
from training.refresh.announcement import Announcer
from training.refresh.attempts import Attempts
from training.refresh.job import expected_fingerprint, fingerprint_of, recall_of
from training.refresh.policy import policy_of
from training.refresh.process import Worker
from training.refresh.request import RefreshRequests, stored_parameters
from training.refresh.retention import discard, forget_later, prune
from training.refresh.version import Pending, Version
from training.refresh.working_set import UpcomingCandidates, WorkingSet

logger = logging.getLogger(__name__)


class Versions:
    """The versions of one run, on one rank.

    Attributes:
        policy: when MEMORY is refreshed, and which rows.
        requests: what refreshes are made from.
        attempts: on rank 0, at the pending version.
        current: the version in use.
        pending: the version being made, or None.
        blocked_seconds: that training waited; the caller resets it.
        refreshed: on rank 0, figures of the version last switched to; the caller resets it.
        recall: recall@10 of the INDEX in use as a figure, if it was measured; set by `open`.
        working_set: candidates of the steps since the last snapshot, if rows are selected by them.
        ages: of the rows of the version in use; set by `open`.
    """

    def __init__(
        self,
        config: Config,
        output: Path,
        run_directory: Path,
        worker: Worker | None,
        threads: int,
        open_index: OpenIndex = MemoryIndex.open,
    ) -> None:
        """Begin with the configured MEMORY and INDEX. Only rank 0 needs a `worker`; it uses so many `threads`."""
        self._config, self._settings = config, config.joint.refresh
        self._output, self._run, self._open_index = output, run_directory, open_index
        self.policy = policy_of(self._settings)
        self.requests = RefreshRequests(config, output, run_directory, threads)
        self.attempts = Attempts(self._settings, run_directory, worker)
        self._announcer = Announcer(self._settings, self.attempts, config.joint.compressor_updates)
        index_hash = manifest_hash(config.index) if config.index else ""
        self.current = Version(0, config.memory, config.index, manifest_hash(config.memory), index_hash, 0)
        self.pending: Pending | None = None
        self.blocked_seconds = 0.0
        self.refreshed: dict[str, float] = {}
        self.recall: dict[str, float] = {}
        self.working_set = WorkingSet()
        self.ages: Ages
        # Snapshot steps of this run's versions, by fingerprint: what MEMORY may hold, and how old each row is.
        self._steps: dict[str, int] = {}
        self._num_rows = 0
        self._rank = 0
        self._switches = Lines(run_directory / "switches-rank0.jsonl")

    def begin(self, rank: int) -> None:
        """Set this process's rank. Rank 0 warns if the recall of the given INDEX is too low."""
        self._rank = rank
        self._switches = Lines(self._run / f"switches-rank{rank}.jsonl")
        if rank == 0:
            recall_of(self.current.index, warn=True)

    def open(self) -> tuple[MemoryStore, TwoLevels | None]:
        """The version in use.

        Raises:
            InputError: it is damaged, or was made by a compressor that is not of this run.
        """
        version = self.current
        source = self.requests.paths(version.number).snapshot if version.number else self._config.checkpoint
        backbone = self._config.backbone
        expected = expected_fingerprint(source, backbone.path, fingerprint_of(version.memory), dtype=backbone.dtype)
        self._steps[expected.hash] = version.snapshot_step
        store = MemoryStore.open(
            version.memory, accept=[expected, *(self._steps if self.policy.mixes_versions else [])]
        )
        self.ages = Ages(store, self._steps, self._config.joint.compressor_updates)
        self._num_rows = len(store)
        self.recall = recall_of(version.index)
        if not version.index:
            return store, None
        score = Checkpoint.open(source, lazy=True).settings.score
        return store, self._open_index(version.index, store, score, self._config.retrieval.exact_rows)

    # --- starting a refresh ------------------------------------------------------------------------------------------

    def after_update(
        self,
        updates: int,
        model: ClaraModel,
        engine: Engine,
        *,
        store_backbone: bool,
        cosine: float = 1.0,
        upcoming: Callable[[int], UpcomingCandidates] = lambda updates: UpcomingCandidates(),
    ) -> None:
        """If a snapshot is due, take it and start its refresh. Every rank calls it with the same `cosine`.

        No snapshot is taken while every row is what the compressor makes of it already.

        Args:
            updates: made so far.
            model: after that many updates.
            engine: of this rank.
            store_backbone: the snapshot holds the LM too.
            cosine: of the canary set; see `RefreshPolicy.due`.
            upcoming: what the steps after that many updates will use; called if rows are selected by it.
        """
        if not self.policy.due(updates, cosine) or not self.ages.oldest(updates):
            return
        measured = cosine < self._settings.trigger_cosine
        if self.pending is not None:
            # That the measure is still low while its refresh is under way is no news.
            if self._rank == 0 and not measured:
                logger.warning(
                    "refresh: version %d is still being made after step %d; no snapshot this time",
                    self.pending.number,
                    updates,
                )
            return
        if self._rank == 0 and measured:
            found = "stored and fresh memory have a cosine of"
            logger.info("refresh: after step %d %s %.4f: a snapshot is due", updates, found, cosine)
        with self._blocking():
            self.pending = Pending(self.current.number + 1, updates, time.time())
            failure = ""
            with engine.whole(stored_parameters(model, store_backbone)):
                if self._rank == 0:
                    failure = self.requests.save_snapshot(
                        self.pending.number, model, updates, store_backbone=store_backbone
                    )
            if self._rank == 0:
                failure = failure or self._save_selection(self.pending.number, updates, upcoming)
                self._start(self.pending, failure)
            self.working_set = WorkingSet()

    def _save_selection(self, number: int, updates: int, upcoming: Callable[[int], UpcomingCandidates]) -> str:
        """Write the selection of an incremental refresh. Returns why it could not be written, or ""."""
        if not self.policy.mixes_versions:
            return ""
        drift = self.requests.paths(self.current.number).drift
        selection = self.policy.select_rows(
            self._num_rows,
            self.working_set.uses,
            upcoming(updates),
            steps=self._steps,
            drift=drift if drift.is_file() else None,
        )
        return self.requests.save_selection(number, selection) if selection is not None else ""

    def _start(self, pending: Pending, failure: str = "") -> None:
        """On rank 0, begin a refresh, or give it up at once because of a failure."""
        if failure:
            discard(self._output, self._run, pending.number, "", states=noted_states(self._run))
            self.attempts.abandon(pending, failure)
            return
        job = self.requests.job(
            pending.number, self.current, self._compressor_step(pending), incremental=self.policy.mixes_versions
        )
        self.attempts.begin(pending, job)

    def _compressor_step(self, pending: Pending) -> int:
        """Updates that the compressor had made at a snapshot; it may have stopped training before."""
        return min(pending.snapshot_step, self._config.joint.compressor_updates)

    # --- ending a refresh --------------------------------------------------------------------------------------------

    def announcement(self, step: int) -> float:
        """Rank 0: the announcement ahead of a step (0-based), see `Announcer`; other ranks: 0."""
        if self._rank != 0:
            return 0.0
        self._announcer.warn_if_stale(step, self.current, self.pending)
        if self.pending is None:
            return 0.0
        with self._blocking():
            return float(self._announcer.announce(step, self.current, self.pending))

    def announcement_after_stop(self) -> float:
        """The same right after a snapshot under switch = `stop`: rank 0 waits for the version."""
        if self._rank != 0 or self.pending is None:
            return 0.0
        with self._blocking():
            return float(self._announcer.announce_after_stop(self.pending))

    def switch(self, step: int, announced: float) -> bool:
        """Take what was announced before a step (0-based): it is used from step + 1 on. True after a switch."""
        if announced == 0 or self.pending is None:
            return False
        pending, self.pending = self.pending, None
        self.attempts.forget()
        if announced < 0:
            return False
        self.refreshed = self.attempts.figures()
        paths = self.requests.paths(pending.number)
        memory, index = str(paths.memory), str(paths.index)
        hashes = manifest_hash(memory), manifest_hash(index)
        self.current = Version(pending.number, memory, index, *hashes, self._compressor_step(pending))
        self._switches.add({"rank": self._rank, "first_step": step + 2, **dataclasses.asdict(self.current)})
        logger.info(
            "rank %d: from step %d on MEMORY version %d, manifest %s",
            self._rank,
            step + 2,
            self.current.number,
            self.current.memory_hash,
        )
        return True

    def finish(self) -> None:
        """After the last step: wait for a refresh under way, `wait_seconds` at most. Training does not use it any more.

        If `joint.refresh.final` encodes everything again with a newer compressor, nobody waits for it.

        Raises:
            InputError: there is still no room for the notes about switches and attempts.
        """
        if self._rank == 0 and self.pending is not None:
            self._finish_pending(self.pending)
        self._switches.finish()
        self.attempts.finish()

    def _finish_pending(self, pending: Pending) -> None:
        outdated = self.policy.mixes_versions or pending.snapshot_step < self._config.joint.compressor_updates
        if not (self._settings.final and outdated):
            with self._blocking():
                self._announcer.finish(self.current, pending)
        elif self.attempts.poll(wait=False, timeout_seconds=0.0) == 0:
            why = "as joint.refresh.final encodes all of it again"
            logger.info("refresh: version %d is ended unfinished, %s", pending.number, why)
            self.attempts.stop("ended for the last re-encoding")

    def staleness(self, step: int) -> int:
        """See `Version.staleness`, of the version in use."""
        return self.current.staleness(step, self._config.joint.compressor_updates)

    def prune(self, updates: int) -> None:
        """Delete unused versions. All ranks have switched by then, as an update is a collective."""
        if self._rank == 0:
            keep, states = self._settings.keep_versions, noted_states(self._run)
            prune(self._output, self._run, current=self.current.number, keep=keep, states=states, step=updates)

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.blocked_seconds += time.monotonic() - began

    # --- resuming ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The versions, as a run state keeps them."""
        return {
            "current": dataclasses.asdict(self.current),
            "pending": dataclasses.asdict(self.pending) if self.pending else None,
            "steps": self._steps,
            "working_set": self.working_set.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned, and restart a refresh that was under way."""
        self.current = Version(**state["current"])
        self.pending = Pending(**state["pending"]) if state["pending"] else None
        self._steps = dict(state["steps"])
        self.working_set.restore(state["working_set"])
        if self._rank != 0:
            return
        forget_later(self._run, max(self.current.number, self.pending.number if self.pending else 0))
        if self.pending is not None:
            self._start(self.pending)
