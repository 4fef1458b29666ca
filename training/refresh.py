"""One re-encoding of MEMORY with a snapshot of the compressor, and the process of its own that it runs in.

python -m training.refresh --job FILE        (started by a local run; a run under Ray calls `run_job` in a task)
"""

import argparse
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from clara import artefact
from clara.artefact import atomic_write
from clara.checkpoint import load_checkpoint
from clara.config import Backbone
from clara.errors import InputError, command_line
from clara.fingerprint import Fingerprint, of_checkpoint
from clara.index import MemoryIndex
from clara.index_build import build_index
from clara.memory import MemoryStore
from clara.reencode import reencode, reencode_recipe
from training.pruning import check_replaceable

logger = logging.getLogger(__name__)
_PARENT_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class RefreshJob:
    """Everything that a refresh needs to know; plain values, so that it travels as JSON.

    Attributes:
        checkpoint: the snapshot, a CHECKPOINT.
        backbone: folder of the LM; empty: the one that the snapshot names or holds.
        parent: MEMORY whose rows are encoded again.
        memory: directory of the new MEMORY.
        index: directory of its INDEX.
        factory: of the index.
        first_level: L that the index's recall is measured with.
        batch_tokens: tokens of a compressing batch, padding included.
        threads: torch threads.
        device: where to encode.
    """

    checkpoint: str
    backbone: str
    parent: str
    memory: str
    index: str
    factory: str
    first_level: int
    batch_tokens: int
    threads: int
    device: str = "cpu"


@dataclass(frozen=True)
class RefreshResult:
    """What a finished refresh made: hashes of its manifests, the fingerprint, rows, bytes, seconds of work."""

    memory_hash: str
    index_hash: str
    fingerprint: str
    rows: int
    bytes: int
    seconds: float


def fingerprint_of(memory: str | os.PathLike[str]) -> Fingerprint:
    """The fingerprint that a MEMORY says it has."""
    return Fingerprint.from_dict(
        artefact.read_manifest(memory, "MEMORY")["fingerprint_fields"], f"{memory}/manifest.json fingerprint_fields"
    )


def expected_fingerprint(checkpoint: str | os.PathLike[str], backbone: str, like: Fingerprint, *, dtype: str = "") -> Fingerprint:
    """What a CHECKPOINT compresses to under the chunking and key settings of another fingerprint, and its dtype where none is given."""
    return of_checkpoint(
        checkpoint,
        backbone=backbone,
        dtype=dtype or like.dtype,
        max_tokens=like.max_tokens,
        overlap_tokens=like.overlap_tokens,
        key_size=like.key_size,
        key_seed=like.key_seed,
    )


def run_job(job: RefreshJob) -> RefreshResult:
    """Encode every row with the snapshot, build the INDEX, read every byte back against the manifests.

    Raises:
        InputError: the snapshot or the parent is damaged, they don't fit, a checksum fails, or a model points to what would be replaced.
    """
    began = time.monotonic()
    torch.set_num_threads(job.threads)
    store = MemoryStore.open(job.parent)
    fingerprint = expected_fingerprint(job.checkpoint, job.backbone, store.fingerprint_fields)
    dtype = "float32" if fingerprint.dtype == "float32" else "bfloat16"
    model = load_checkpoint(job.checkpoint, Backbone(path=job.backbone, dtype=dtype), device=job.device)
    if not artefact.up_to_date(job.memory, "MEMORY", reencode_recipe(store, fingerprint, job.batch_tokens)):
        check_replaceable(Path(job.memory))
        # What an earlier run left under this name is no longer whole once the first shard is replaced.
        (Path(job.memory) / artefact.MANIFEST).unlink(missing_ok=True)
    manifest = reencode(store, model.eval(), job.memory, fingerprint=fingerprint, batch_tokens=job.batch_tokens)
    build_index(job.memory, job.index, job.factory, first_level=job.first_level, allow_low_recall=True)
    for folder, kind in ((job.memory, "MEMORY"), (job.index, "INDEX")):
        try:
            artefact.verify(folder, kind)
        except InputError:
            # Else the next try would find it finished, instead of making the damaged shard again.
            (Path(folder) / artefact.MANIFEST).unlink(missing_ok=True)
            raise
    size = sum(f["bytes"] for f in manifest["files"])
    return RefreshResult(
        memory_hash=artefact.manifest_hash(job.memory),
        index_hash=artefact.manifest_hash(job.index),
        fingerprint=fingerprint.hash,
        rows=int(manifest["counts"]["rows"]),
        bytes=size,
        seconds=time.monotonic() - began,
    )


class RefreshError(RuntimeError):
    """A refresh ended without a new version; the message says why."""


def check_result(job: RefreshJob, result: RefreshResult) -> None:
    """Refuse to switch to what is not what the job was to make. Every byte was read back by the job itself.

    Raises:
        RefreshError: manifest, size, fingerprint or rows are not right; the message says which.
    """
    try:
        fingerprint = expected_fingerprint(job.checkpoint, job.backbone, fingerprint_of(job.parent))
        store = MemoryStore.open(job.memory, accept=[fingerprint])
        MemoryIndex.open(job.index, store)
    except InputError as error:
        raise RefreshError(str(error)) from error
    for folder, wanted in ((job.memory, result.memory_hash), (job.index, result.index_hash)):
        if (found := artefact.manifest_hash(folder)) != wanted:
            raise RefreshError(f"{folder}: its manifest hash is {found[:16]}, the refresh made {wanted[:16]}; something else wrote there")
    if not np.array_equal(store.row_ids, MemoryStore.open(job.parent).row_ids):
        raise RefreshError(f"{job.memory}: its rows are not those of {job.parent}")


class Ticket(Protocol):
    """A refresh under way."""

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        """The result, or None if it is not there within the time.

        Raises:
            RefreshError: it ended without one.
        """
        ...

    def stop(self) -> None:
        """End it, if it still runs."""
        ...


class Worker(Protocol):
    """Where refreshes run beside training."""

    def start(self, job: RefreshJob, log: Path) -> Ticket:
        """Begin; `log` takes what the worker says, where it has no other place for it."""
        ...


class ProcessTicket:
    """A refresh in a process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], result: Path, log: Path) -> None:
        self.process = process
        self._result, self._log = result, log

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        """See `Ticket`."""
        try:
            status = self.process.wait(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        if status != 0 or not self._result.is_file():
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if self._log.is_file() else []
            ending = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise RefreshError(f"{ending}; {lines[-1] if lines else 'nothing said'} (log: {self._log})")
        return RefreshResult(**json.loads(self._result.read_text()))

    def stop(self) -> None:
        """See `Ticket`."""
        self.process.kill()
        self.process.wait()


class ProcessWorker:
    """Runs each refresh in a process of its own, which ends when this one does."""

    def start(self, job: RefreshJob, log: Path) -> ProcessTicket:
        """See `Worker`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        file, result = log.with_suffix(".job.json"), log.with_suffix(".result.json")
        result.unlink(missing_ok=True)
        atomic_write(file, json.dumps(dataclasses.asdict(job), indent=1))
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "training.refresh", "--job", str(file), "--result", str(result), "--parent", str(os.getpid())]
        with open(log, "ab") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(job.threads)}
            )
        return ProcessTicket(process, result, log)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed run must leave nobody behind who writes into its directory."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os._exit(1)


def read_job(path: str) -> RefreshJob:
    """A job from its JSON.

    Raises:
        InputError: no such file, or not a job.
    """
    try:
        fields: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return RefreshJob(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--job {path}: not a refresh job ({error}); joint training writes it") from error


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.refresh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", required=True, help="JSON with the fields of RefreshJob")
    parser.add_argument("--result", default="", help="file for the result, as JSON (default: print it)")
    parser.add_argument("--parent", type=int, default=0, help="process id; end when it is no longer the parent (default: go on)")
    parser.add_argument("--dry-run", action="store_true", help="print the job and the fingerprint that its MEMORY will have, and stop")
    options = parser.parse_args(argv)
    job = read_job(options.job)
    if options.dry_run:
        fingerprint = expected_fingerprint(job.checkpoint, job.backbone, fingerprint_of(job.parent)).hash
        print(json.dumps(dataclasses.asdict(job) | {"fingerprint": fingerprint}, indent=1))
        return 0
    if options.parent:
        threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()
    result = json.dumps(dataclasses.asdict(run_job(job)), indent=1)
    if options.result:
        atomic_write(options.result, result + "\n")
    else:
        print(result)
    return 0


if __name__ == "__main__":
    command_line(main)
