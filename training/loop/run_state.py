"""Run states: what resuming needs, for any number of ranks, any ZeRO stage and either launcher.

run_state/step-00000100/state.safetensors   `weight.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME` of every
parameter that trains, whole
                        state.json          updates made, ranks that made them, and what the stage adds; written last

What trains is small (adapters), so it is gathered to rank 0 by parameter name, which takes one collective after another
on every rank, and written by a thread beside training. Batches, random numbers and learning rates are functions
of the step's number: they need no place here. Two files take the place of DeepSpeed's own, which hold a partition of
each rank and fit only as many ranks of the same stage.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clara.errors import InputError
from clara.storage.folders import atomic_write
from clara.storage.manifest import make_directory
from training.loop.engine import Engine

logger = logging.getLogger(__name__)
RUN_STATE = "run_state"
TENSORS = "state.safetensors"
_DONE, _WRITING = "state.json", "state.writing.json"
WRITE_SECONDS = 900.0
"""Longest wait for a run state that is being written: a store that hangs must not keep a run for ever."""


class Stateful(Protocol):
    """What a stage adds to a run state."""

    name: str

    def state(self) -> dict[str, Any]:
        """What resuming needs beside weights, optimiser and step."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        ...


def run_states(directory: Path) -> list[Path]:
    """`state.json` of the complete run states, oldest first."""
    return sorted((directory / RUN_STATE).glob(f"step-*/{_DONE}"))


def noted_states(directory: Path) -> list[Path]:
    """The notes of complete run states and of one that is being written: what they name may not be deleted."""
    return sorted((directory / RUN_STATE).glob("step-*/state*.json"))


def keep_newest(directory: Path, count: int) -> None:
    """Delete all complete run states but the newest `count`."""
    for old in run_states(directory)[:-count]:
        old.unlink()
        shutil.rmtree(old.parent, ignore_errors=True)


class RunStates:
    """The run states of a directory, as one rank of a run writes and reads them. Every rank makes the same calls."""

    def __init__(self, directory: Path, engine: Engine, keep: int = 2) -> None:
        """`keep`: the newest complete ones stay, older ones are deleted."""
        self._directory, self._engine, self._keep = directory, engine, keep
        self._thread: threading.Thread | None = None
        self._hangs = False
        self._failure = ""
        self.blocked_seconds = 0.0

    def resume(self, stage: Stateful) -> int:
        """Take up the newest complete run state; returns the number of updates that were made.

        Raises:
            InputError: it is not readable, or holds other parameters than train now.
        """
        found = run_states(self._directory)
        # Rank 0 says which: another may look while the ranks of a killed run are still writing.
        newest = int(self._engine.sum([float(_step(found[-1])) if found and self._engine.rank == 0 else 0.0])[0])
        if self._engine.rank == 0:
            self._remove_unfinished()
        if not newest:
            return 0
        folder = self._folder(newest)
        note = json.loads((folder / _DONE).read_text())
        try:
            tensors = load_file(folder / TENSORS)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{folder / TENSORS}: not readable ({error}); delete the folder to go back to the run state before it"
            ) from error
        try:
            self._engine.take_state(tensors)
        except KeyError as error:
            raise InputError(
                f"{folder / TENSORS}: {error.args[0]}; it is not of this run: delete the folder, or give another output"
            ) from error
        stage.restore(note["stage"])
        logger.info(
            "resuming %s after step %d (of %d ranks, now %d)", stage.name, newest, note["ranks"], self._engine.world
        )
        return newest

    def save(self, step: int, stage: Stateful) -> None:
        """Gather the state after `step` updates, and begin to write it; the one before is complete by then."""
        began = time.monotonic()
        self.wait()
        tensors = self._engine.gather_state()
        if self._engine.rank == 0:
            note = json.dumps({"step": step, "ranks": self._engine.world, "stage": stage.state()})
            folder = self._folder(step)
            try:
                (make_directory(folder) / _DONE).unlink(missing_ok=True)
                # Before anything else can go that it names.
                atomic_write(folder / _WRITING, note)
            except InputError as error:
                self._failure = str(error)
            else:
                self._thread = threading.Thread(
                    target=self._write, args=(folder, tensors, note), name="run-state", daemon=True
                )
                self._thread.start()
        self.blocked_seconds += time.monotonic() - began

    def wait(self) -> None:
        """Until the last one is written; then delete older ones. A disk without room costs the run state, not the run.

        Raises:
            InputError: the disk takes it neither, nor refuses it.
        """
        if self._thread is not None:
            self._thread.join(0.0 if self._hangs else WRITE_SECONDS)
            if self._thread.is_alive():
                self._hangs = True
                raise InputError(
                    f"{self._directory / RUN_STATE}: a run state is still being written after {WRITE_SECONDS:g} s; "
                    "see to the disk or network "
                    "store, and run the same command again: it resumes from the last complete one"
                )
            self._thread = None
        if self._failure:
            before = run_states(self._directory)
            logger.error(
                "run state: not written (%s); training continues, and would resume after step %d",
                self._failure,
                _step(before[-1]) if before else 0,
            )
            self._failure = ""
        if self._engine.rank == 0:
            for note in (self._directory / RUN_STATE).glob(f"step-*/{_WRITING}"):
                note.unlink()
            keep_newest(self._directory, self._keep)

    def forget(self, step: int) -> None:
        """Delete the state after `step` updates, if there is one: its weights led to a step that is not finite."""
        self.wait()
        if self._engine.rank == 0 and (note := self._folder(step) / _DONE).is_file():
            note.unlink()
            shutil.rmtree(note.parent)
            logger.info("run state: the one after step %d is deleted, as the step made from it is not finite", step)

    def _write(self, folder: Path, tensors: Mapping[str, Tensor], note: str) -> None:
        partial = folder / f".{TENSORS}.{os.getpid()}"
        try:
            save_file(dict(tensors), partial)
            with open(partial, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, folder / TENSORS)
            atomic_write(folder / _DONE, note)
        except (OSError, SafetensorError, InputError) as error:
            self._failure = str(error)
            # Room for the next try.
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self._directory / RUN_STATE / f"step-{step:08d}"

    def _remove_unfinished(self) -> None:
        """What a killed run left half written."""
        for folder in (self._directory / RUN_STATE).glob("step-*"):
            if not (folder / _DONE).is_file():
                shutil.rmtree(folder, ignore_errors=True)


def _step(note: Path) -> int:
    return int(note.parent.name.removeprefix("step-"))
