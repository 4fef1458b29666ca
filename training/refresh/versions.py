"""MEMORY versions of a run: when a snapshot is taken, who encodes it, and the one step at which all ranks switch.

Rank 0 alone knows how far a refresh is. It tells the others through the sum that every step makes anyway: the number of
the version that is ready, its negative when a refresh is given up, else 0. So every rank switches ahead of the same
step, and no step mixes versions.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from clara.config.roles import ROLES
from clara.config.tree import Config
from clara.errors import InputError
from clara.index.build import next_settings
from clara.index.search import MemoryIndex, TwoLevels
from clara.memory.store import MemoryStore
from clara.model.checkpoint import save_checkpoint
from clara.model.model import ClaraModel
from clara.storage.artefact import manifest_hash
from training.loop.engine import Engine
from training.loop.lines import Lines
from training.loop.run_state import noted_states
from training.refresh.ages import Ages
from training.refresh.attempts import Tries
from training.refresh.job import RefreshJob, expected_fingerprint, fingerprint_of, recall_of
from training.refresh.process import Worker
from training.refresh.retention import discard, forget_later, prune
from training.refresh.version import Pending, Version, snapshot_due
from training.refresh.working_set import Choice, Coming, WorkingSet

logger = logging.getLogger(__name__)
OpenIndex = Callable[[str, MemoryStore], TwoLevels]


def stored_parameters(model: ClaraModel, store_backbone: bool) -> list[nn.Parameter]:
    """The parameters that a CHECKPOINT holds."""
    parts = [*ROLES, "memory_tokens", *["backbone"] * store_backbone]
    return [p for part in parts for p in model.role_parameters(part)]


class Versions:
    """The versions of one run, on one rank.

    Attributes:
        current: the version in use.
        pending: the one that is being made, if one is.
        blocked_seconds: that training waited since somebody last set it to 0.
        refreshed: on rank 0, what the version last switched to took to make, for the figures of the step.
        tries: on rank 0, at the pending version.
        recall: recall@10 of the INDEX in use once it is open, where it was measured, for the figures of the steps.
        working_set: candidates of the steps since the last snapshot, where rows are chosen by them.
        ages: of the rows of the version in use, once it is open.
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
        self._config, self._settings = config, config.joint.refresh
        self._output, self._run = output, run_directory
        self.run_directory = run_directory
        self._threads, self._open_index = threads, open_index
        self.tries = Tries(self._settings, run_directory, worker)
        self.current = Version(
            0,
            config.memory,
            config.index,
            manifest_hash(config.memory),
            manifest_hash(config.index) if config.index else "",
            0,
        )
        self.pending: Pending | None = None
        self.blocked_seconds = 0.0
        self.refreshed: dict[str, float] = {}
        self.recall: dict[str, float] = {}
        self.working_set = WorkingSet()
        self.ages: Ages
        # Snapshot steps of this run's versions, by fingerprint: what MEMORY may hold, and how old each row is.
        self._steps: dict[str, int] = {}
        self._num_rows = 0
        self._lost = ""
        self._warned = self._waited_for = -1
        self._rank = 0
        self._switches = Lines(run_directory / "switches-rank0.jsonl")

    def begin(self, rank: int) -> None:
        """Learn which rank this is. Rank 0 warns of an INDEX that the run was given and that finds too little."""
        self._rank = rank
        self._switches = Lines(self._run / f"switches-rank{rank}.jsonl")
        if rank == 0:
            recall_of(self.current.index, warn=True)

    # --- opening -----------------------------------------------------------------------------------------------------

    def open(self) -> tuple[MemoryStore, TwoLevels | None]:
        """The version in use.

        Raises:
            InputError: it is damaged, or made by another compressor than this run's.
        """
        version = self.current
        source = self._snapshot(version.number) if version.number else self._config.checkpoint
        backbone = self._config.backbone
        expected = expected_fingerprint(source, backbone.path, fingerprint_of(version.memory), dtype=backbone.dtype)
        self._steps[expected.hash] = version.snapshot_step
        mixing = self._settings.policy == "incremental"
        store = MemoryStore.open(version.memory, accept=[expected, *(self._steps if mixing else [])])
        self.ages = Ages(store, self._steps, self._config.joint.compressor_updates)
        self._num_rows = len(store)
        self.recall = recall_of(version.index)
        return store, self._open_index(version.index, store) if version.index else None

    def _snapshot(self, number: int) -> Path:
        return self._run / f"snapshot-v{number}"

    # --- a refresh's life --------------------------------------------------------------------------------------------

    def after_update(
        self,
        updates: int,
        model: ClaraModel,
        engine: Engine,
        *,
        store_backbone: bool,
        cosine: float = 1.0,
        coming: Callable[[int], Coming] = lambda updates: Coming(),
    ) -> None:
        """Take a snapshot where one is due, and start its refresh. Every rank calls it, with the same `cosine` (see `snapshot_due`).

        As long as every row is as the compressor makes it, there is nothing to encode, and no snapshot is taken.

        Args:
            updates: made so far.
            model: as it is then.
            engine: of this rank.
            store_backbone: the snapshot holds the LM too.
            cosine: of the canary set.
            coming: what the steps after that many updates will use, where rows are chosen by it.
        """
        if not snapshot_due(updates, self._settings, cosine) or not self.ages.oldest(updates):
            return
        if self.pending is not None:
            # A trigger that fires on while its refresh is under way is no news.
            if self._rank == 0 and cosine >= self._settings.trigger_cosine:
                logger.warning(
                    "refresh: version %d is still being made after step %d; no snapshot this time",
                    self.pending.number,
                    updates,
                )
            return
        if self._rank == 0 and cosine < self._settings.trigger_cosine:
            logger.info(
                "refresh: after step %d stored and fresh memory have a cosine of %.4f: a snapshot is due",
                updates,
                cosine,
            )
        began = time.monotonic()
        self.pending = Pending(self.current.number + 1, updates, time.time())
        with engine.whole(stored_parameters(model, store_backbone)):
            if self._rank == 0:
                self._lost = self._save_snapshot(model, updates, store_backbone=store_backbone)
        if self._rank == 0 and self._settings.policy == "incremental" and not self._lost:
            self._lost = self._save_choice(coming(updates))
        self.working_set = WorkingSet()
        if not self._lost:
            self._start()
        self.blocked_seconds += time.monotonic() - began

    def _save_snapshot(self, model: ClaraModel, updates: int, *, store_backbone: bool) -> str:
        """Write the snapshot of the pending version. Returns why it could not be written: a full disk must not end training."""
        folder = self._snapshot(self.pending.number if self.pending else 0)
        try:
            save_checkpoint(
                model, folder, stage="joint", recipe={"snapshot_after_step": updates}, store_backbone=store_backbone
            )
        except (InputError, OSError) as error:
            return str(error)
        return ""

    def _save_choice(self, coming: Coming) -> str:
        """Write by what the rows of the pending version are chosen. Returns why it could not be written."""
        number = self.pending.number if self.pending else 0
        uses = self.working_set.uses
        uses.update(coming.rows)
        drift = self._drift(self.current.number)
        settings = self._settings
        choice = Choice(
            num_rows=settings.num_rows(self._num_rows),
            oldest_share=settings.oldest_share,
            row_ids=list(uses),
            uses=list(uses.values()),
            questions=list(coming.questions),
            per_question=self._config.joint.from_index,
            steps=self._steps,
            drift=str(drift) if drift.is_file() else "",
        )
        try:
            choice.save(self._choice(number))
        except InputError as error:
            return str(error)
        return ""

    def _choice(self, number: int) -> Path:
        return self._run / f"choice-v{number}.json"

    def _drift(self, number: int) -> Path:
        return self._run / f"drift-v{number}.parquet"

    def _start(self) -> None:
        if self._rank == 0 and self.pending is not None:
            number, chosen = self.pending.number, self._settings.policy == "incremental"
            self.tries.begin(
                self.pending, self.job(number, self._snapshot(number), self._made_after(self.pending), chosen=chosen)
            )

    def _made_after(self, pending: Pending) -> int:
        """Updates of the compressor of a snapshot: it may stand still by then."""
        return min(pending.snapshot_step, self._config.joint.compressor_updates)

    def job(self, number: int, checkpoint: Path, snapshot_step: int, *, chosen: bool = False) -> RefreshJob:
        """The refresh that makes version `number` of a checkpoint after that many updates: of all rows, or of the chosen ones."""
        return RefreshJob(
            checkpoint=str(checkpoint),
            backbone=self._config.backbone.path,
            parent=self.current.memory,
            memory=str(self._output / f"memory-v{number}"),
            index=str(self._output / f"index-v{number}"),
            **next_settings(self.current.index, self._config.retrieval.factory),
            first_level=self._config.retrieval.first_level,
            batch_tokens=self._config.corpus_job.batch_tokens,
            threads=self._threads,
            device="cuda" if self._settings.num_gpus else "cpu",
            snapshot_step=snapshot_step,
            choice=str(self._choice(number)) if chosen else "",
            parent_index=self.current.index if chosen else "",
            drift=str(self._drift(number)) if chosen else "",
        )

    def announcement(self, step: int) -> float:
        """Rank 0: the number of a version that is ready, its negative if it is given up; everybody else and otherwise 0."""
        if self._rank != 0:
            return 0.0
        stale = 0 < self._settings.max_staleness_steps < self.staleness(step)
        if stale and (
            self._settings.when_stale == "warn" or (self._settings.when_stale == "wait" and self.pending is None)
        ):
            self._warn(step)
        if self.pending is None:
            return 0.0
        began, fixed = time.monotonic(), self._settings.switch == "fixed"
        if fixed and step < self._last_step():
            # A try that failed is made again at once; what comes of it is announced at its step.
            self.tries.poll(wait=False, timeout_seconds=0.0)
            self.blocked_seconds += time.monotonic() - began
            return 0.0
        # What is announced holds from the next step on.
        late = 0 < self._settings.max_staleness_steps < self.staleness(step + 1) and self._settings.when_stale == "wait"
        # Who has waited for it in vain does not wait for it again at every step.
        late = late and self._waited_for != self.pending.number
        number = self._poll(wait=fixed or late, timeout_seconds=self._settings.wait_seconds)
        if fixed and number == 0:
            number = self._give_up()
        if late and number == 0:
            self._waited_for = self.pending.number
            self._warn(step)
        self.blocked_seconds += time.monotonic() - began
        return float(number)

    def stop_for(self) -> float:
        """Right after a snapshot under switch = `stop`: rank 0 waits, wait_seconds at most, and says what `announcement` says."""
        if self._rank != 0 or self.pending is None:
            return 0.0
        began = time.monotonic()
        number = self._poll(wait=True, timeout_seconds=self._settings.wait_seconds)
        if number == 0:
            logger.warning(
                "refresh: version %d is not ready after %.0f s; training goes on without it",
                self.pending.number,
                self._settings.wait_seconds,
            )
        self.blocked_seconds += time.monotonic() - began
        return float(number)

    def staleness(self, step: int) -> int:
        """Updates of the compressor that the version in use, of mixed ones its newest rows, lacks in a step (0-based)."""
        return max(0, min(step, self._config.joint.compressor_updates) - self.current.snapshot_step)

    def _warn(self, step: int) -> None:
        """Say, once for each version, that it is older than is wanted."""
        if self._warned != self.current.number:
            self._warned = self.current.number
            logger.warning(
                "refresh: at step %d MEMORY version %d lacks %d updates of the compressor, more than joint.refresh.max_staleness_steps = %d; "
                "training goes on with it",
                step + 1,
                self.current.number,
                self.staleness(step),
                self._settings.max_staleness_steps,
            )

    def _last_step(self) -> int:
        """The last step (0-based) on the old version under `fixed`."""
        return (self.pending.snapshot_step if self.pending else 0) + self._settings.delta_steps - 1

    def _poll(self, *, wait: bool, timeout_seconds: float) -> int:
        """See `Tries.poll`; a version without a snapshot is given up."""
        if self.pending is not None and self._lost:
            logger.error(
                "refresh: no snapshot for version %d (%s); training stays on version %d",
                self.pending.number,
                self._lost,
                self.current.number,
            )
            self._lost = ""
            discard(self._output, self._run, self.pending.number, "", states=noted_states(self._run))
            return -self.pending.number
        return self.tries.poll(wait=wait, timeout_seconds=timeout_seconds) if self.pending is not None else 0

    def switch(self, step: int, announced: float) -> bool:
        """Ahead of step `step` (0-based), whose batches are drawn: take what was announced; it holds from step + 1 on. True after a switch."""
        if announced == 0 or self.pending is None:
            return False
        number, snapshot_step, self.pending = self.pending.number, self._made_after(self.pending), None
        self.tries.forget()
        if announced < 0:
            return False
        self.refreshed = self.tries.figures()
        memory, index = self._output / f"memory-v{number}", self._output / f"index-v{number}"
        self.current = Version(
            number, str(memory), str(index), manifest_hash(memory), manifest_hash(index), snapshot_step
        )
        record = {"rank": self._rank, "first_step": step + 2, **dataclasses.asdict(self.current)}
        self._switches.add(record)
        logger.info(
            "rank %d: from step %d on MEMORY version %d, manifest %s",
            self._rank,
            step + 2,
            number,
            self.current.memory_hash,
        )
        return True

    def finish(self) -> None:
        """After the last step: wait for a refresh under way, `wait_seconds` at most. It is not used in training any more.

        Where everything is encoded once more anyway, and by a newer compressor, nobody waits for it.

        Raises:
            InputError: there is still no room for what is noted about switches and tries.
        """
        if self._rank == 0 and self.pending is not None:
            self._finish_pending(self.pending)
        self._switches.finish()
        self.tries.finish()

    def _finish_pending(self, pending: Pending) -> None:
        older = self._settings.policy == "incremental" or pending.snapshot_step < self._config.joint.compressor_updates
        if self._settings.final and older:
            if self._poll(wait=False, timeout_seconds=0.0) == 0:
                logger.info(
                    "refresh: version %d is ended unfinished, as joint.refresh.final encodes all of it again",
                    pending.number,
                )
                self.tries.stop("ended for the last re-encoding")
            return
        logger.info("refresh: waiting for version %d (at most %.0f s)", pending.number, self._settings.wait_seconds)
        began = time.monotonic()
        number = self._poll(wait=True, timeout_seconds=self._settings.wait_seconds)
        self.blocked_seconds += time.monotonic() - began
        if number == 0:
            self._give_up()

    def _give_up(self) -> int:
        """End a refresh that was waited for in vain. Returns what announces it."""
        number = self.pending.number if self.pending else 0
        why = f"not ready after {self._settings.wait_seconds:.0f} s (joint.refresh.wait_seconds)"
        self.tries.stop(why)
        logger.error(
            "refresh: version %d is %s and is given up; training stays on version %d", number, why, self.current.number
        )
        return -number

    def prune(self, updates: int) -> None:
        """After that many updates: delete versions that nobody uses. All ranks have switched by then, as an update is a collective."""
        if self._rank == 0:
            keep, states = self._settings.keep_versions, noted_states(self._run)
            prune(self._output, self._run, current=self.current.number, keep=keep, states=states, step=updates)

    # --- resuming ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For a run state."""
        found = {
            "current": dataclasses.asdict(self.current),
            "pending": dataclasses.asdict(self.pending) if self.pending else None,
        }
        return found | {"steps": self._steps, "working_set": self.working_set.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, and start a refresh that was under way again."""
        self.current = Version(**state["current"])
        self.pending = Pending(**state["pending"]) if state["pending"] else None
        self._steps = dict(state["steps"])
        self.working_set.restore(state["working_set"])
        if self._rank == 0:
            forget_later(
                self._run, max(version.number for version in (self.current, self.pending) if version is not None)
            )
        self._start()
