"""One re-encoding of MEMORY with a snapshot of the compressor.

`training.refresh.process` and `ray_actors` run it beside training.

python -m training.refresh --job FILE        (one job again, as a run left it beside its log)
"""

import gc
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clara.arrays import Ids
from clara.config.model import Backbone
from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.recall import RECALL_FLOOR, recall_from_manifest
from clara.index.search import MemoryIndex
from clara.index.versions import has_words
from clara.memory.fingerprint import Fingerprint, of_checkpoint, of_memory
from clara.memory.reencode import check_follows, reencode, reencode_recipe, reencode_shards
from clara.memory.reencode_rows import reencode_rows, rows_recipe
from clara.memory.store import MemoryStore
from clara.model.checkpoint import load_checkpoint
from clara.model.model import ClaraModel
from clara.retrieval.retriever import Retriever
from clara.storage.artefact import Artefact
from clara.storage.manifest import MANIFEST, manifest_hash, up_to_date
from training.refresh.ages import steps_of_rows
from training.refresh.retention import check_replaceable
from training.refresh.working_set import RowSelection, rows_to_refresh, write_drift

logger = logging.getLogger(__name__)


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
        probes: inverted lists that a query looks into; 0: by their number.
        recall_floor: a lower recall of the index is warned of.
        words: write the words part of the index.
        parts_index: INDEX of the same rows whose words and dense vectors are linked; where it has no words, none are
            written. Empty: there is none, and the words are built.
        first_level: L that the index's recall is measured with.
        exact_rows: see `retrieval.exact_rows`.
        batch_tokens: tokens of a compressing batch, padding included.
        threads: torch threads.
        device: where to encode.
        snapshot_step: updates after which the snapshot was taken.
        selection: file with the `training.refresh.working_set.RowSelection`; empty: all rows are encoded again.
        parent_index: INDEX of the parent, in which upcoming questions are searched; empty: there is none.
        drift: file for the drift of chosen rows.
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
    snapshot_step: int = 0
    selection: str = ""
    parent_index: str = ""
    drift: str = ""
    probes: int = 0
    recall_floor: float = RECALL_FLOOR
    words: bool = True
    parts_index: str = ""
    exact_rows: int = 0


@dataclass(frozen=True)
class RefreshResult:
    """What a finished refresh made.

    Attributes:
        memory_hash: of the MEMORY's manifest.
        index_hash: of the INDEX's manifest.
        fingerprint: of what was encoded.
        rows: that were encoded.
        bytes: that were written of MEMORY.
        seconds: of work.
        oldest_step: updates after which the oldest row's snapshot was taken.
        drift: mean of 1 − cosine between what was stored of the encoded rows and what is now; None where it was not
            measured.
        recall_at_10: of the INDEX, as it was measured when built; None where it was not.
        recall_warning: where that is under the floor, else empty.
        finished_at: when it was done (Unix time).
    """

    memory_hash: str
    index_hash: str
    fingerprint: str
    rows: int
    bytes: int
    seconds: float
    oldest_step: int = 0
    drift: float | None = None
    recall_at_10: float | None = None
    recall_warning: str = ""
    finished_at: float = 0.0

    def figures(self) -> dict[str, float]:
        """For the step that switches to it."""
        found = {
            "refresh_seconds": self.seconds,
            "refresh_bytes": self.bytes,
            "refresh_rows": self.rows,
            "refresh_drift": self.drift,
            "refresh_recall_at_10": self.recall_at_10,
        }
        return {name: float(value) for name, value in found.items() if value is not None}

    def log(self, number: int) -> None:
        """Log that the version of that number is ready, with a warning if the recall of its INDEX is too low."""
        recall = "not measured" if self.recall_at_10 is None else f"{self.recall_at_10:.4f}"
        logger.info(
            "refresh: version %d is ready: %d rows, %d bytes, %.1f s, recall@10 %s",
            number,
            self.rows,
            self.bytes,
            self.seconds,
            recall,
        )
        if self.recall_warning:
            logger.warning("refresh: version %d: %s", number, self.recall_warning)


def fingerprint_of(memory: str | os.PathLike[str]) -> Fingerprint:
    """The fingerprint that a MEMORY says it has."""
    return of_memory(Artefact.open(memory, "MEMORY", lazy=True))


def expected_fingerprint(
    checkpoint: str | os.PathLike[str], backbone: str, like: Fingerprint, *, dtype: str = ""
) -> Fingerprint:
    """Fingerprint of a CHECKPOINT under the chunking and key settings of another, and its dtype unless one is given."""
    encoding = replace(like.encoding, dtype=dtype or like.dtype)
    return of_checkpoint(checkpoint, encoding, backbone=backbone)


def recall_of(index: str, *, warn: bool = False) -> dict[str, float]:
    """Recall@10 of an INDEX as a figure, where it was measured; on request with the warning of one under its floor."""
    recall, warning = recall_from_manifest(index) if index else (None, "")
    if warn and warning:
        logger.warning("index: %s", warning)
    return {} if recall is None else {"index_recall_at_10": recall}


def run_job(job: RefreshJob) -> RefreshResult:
    """Encode all or the selected rows with the snapshot, build the INDEX, and verify every byte written.

    Raises:
        InputError: the snapshot or the parent is damaged, they don't fit, a checksum fails, or a model points to what
            would be replaced.
    """
    began = time.monotonic()
    store, fingerprint, model = _opened(job)
    rows, lag, recipe = store.row_ids, None, reencode_recipe(store, fingerprint, job.batch_tokens)
    if job.selection:
        selection = RowSelection.load(job.selection)
        rows, lag = rows_to_refresh(selection, store, job.snapshot_step, _searcher(job, store, model))
        recipe = rows_recipe(store, rows, fingerprint, job.batch_tokens)
    _make_room(job, recipe)
    if job.selection:
        manifest = reencode_rows(store, rows, model, job.memory, fingerprint=fingerprint, batch_tokens=job.batch_tokens)
    else:
        manifest = reencode(store, model, job.memory, fingerprint=fingerprint, batch_tokens=job.batch_tokens)
    # Of an incremental refresh most rows' keys are the parent's, and need not be sorted into lists again.
    build_index(
        job.memory,
        job.index,
        job.factory,
        first_level=job.first_level,
        mixed=True,
        parent=job.parent_index,
        probes=job.probes,
        recall_floor=job.recall_floor,
        words=job.words and (not job.parts_index or has_words(job.parts_index)),
        parts_from=job.parts_index,
        score=model.settings.score,
        exact_rows=job.exact_rows,
    )
    recall, warning = recall_from_manifest(job.index)
    own = {*manifest["shards"], *manifest["overlays"]} - ({*store.shard_names} if job.selection else set())
    _read_back(job, own if job.selection else None)
    made, drift = MemoryStore.open(job.memory, mixed=True), None
    if lag is not None:
        drift = write_drift(job.drift, store, made, rows, lag, selection.drift)
    return RefreshResult(
        memory_hash=manifest_hash(job.memory),
        index_hash=manifest_hash(job.index),
        fingerprint=fingerprint.hash,
        rows=len(rows),
        bytes=sum(f["bytes"] for f in manifest["files"] if f["path"].partition("/")[0] in own or not job.selection),
        seconds=time.monotonic() - began,
        oldest_step=int(steps_of_rows(made, selection.steps | {fingerprint.hash: job.snapshot_step}).min())
        if job.selection
        else job.snapshot_step,
        drift=drift,
        recall_at_10=recall,
        recall_warning=warning,
        finished_at=time.time(),
    )


def encode_share(job: RefreshJob, share: int, of: int) -> None:
    """Of a re-encoding of all rows every `of`-th shard, from number `share` on: `run_job` then finds it finished.

    Raises:
        InputError: see `run_job`.
    """
    store, fingerprint, model = _opened(job)
    check_follows(store, fingerprint, job.memory)
    _make_room(job, reencode_recipe(store, fingerprint, job.batch_tokens))
    shards = range(share, store.num_shards, of)
    for _ in reencode_shards(store, shards, model, job.memory, fingerprint=fingerprint, batch_tokens=job.batch_tokens):
        continue


def _opened(job: RefreshJob) -> tuple[MemoryStore, Fingerprint, ClaraModel]:
    """The parent, the fingerprint of what is made of it, and the snapshot."""
    torch.set_num_threads(job.threads)
    store = MemoryStore.open(job.parent, mixed=True)
    fingerprint = expected_fingerprint(job.checkpoint, job.backbone, store.fingerprint_fields)
    dtype = "float32" if fingerprint.dtype == "float32" else "bfloat16"
    return (
        store,
        fingerprint,
        load_checkpoint(job.checkpoint, Backbone(path=job.backbone, dtype=dtype), device=job.device).eval(),
    )


def _make_room(job: RefreshJob, recipe: dict[str, Any]) -> None:
    """What an earlier run left under this name is no longer whole once the first shard is replaced.

    Raises:
        InputError: a model points to it.
    """
    if not up_to_date(job.memory, "MEMORY", recipe):
        check_replaceable(Path(job.memory))
        (Path(job.memory) / MANIFEST).unlink(missing_ok=True)


def run_and_release(job: RefreshJob) -> RefreshResult:
    """`run_job` in a process that stays: what it held is free for training until the next."""
    try:
        return run_job(job)
    finally:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _searcher(job: RefreshJob, store: MemoryStore, model: ClaraModel) -> Callable[[Sequence[str], int], Ids] | None:
    """What the parent's INDEX gives questions as the snapshot's query reasoner reads them."""
    if not job.parent_index:
        return None
    settings = Retrieval(first_level=job.first_level, exact_rows=job.exact_rows)
    index = MemoryIndex.open(job.parent_index, store, model.settings.score, job.exact_rows)
    retriever = Retriever(model, store, index, retrieval=settings)
    return lambda questions, k: retriever.search(retriever.queries(questions), k)[0]


def _read_back(job: RefreshJob, folders: Collection[str] | None) -> None:
    """Verify what a refresh wrote against the manifests: all, or these folders of MEMORY, as others are only links.

    Raises:
        InputError: a byte is wrong. What was made is no artefact any more then.
    """
    for directory, kind in ((job.memory, "MEMORY"), (job.index, "INDEX")):
        try:
            Artefact.open(directory, kind).verify(only=folders if kind == "MEMORY" else None)
        except InputError:
            # Else the next try would find it finished, instead of making the damaged shard again.
            (Path(directory) / MANIFEST).unlink(missing_ok=True)
            raise


class RefreshError(RuntimeError):
    """A refresh ended without a new version; the message says why."""
