"""Compresses and writes one shard. Called by the Beam graph and by the local run."""

import math
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.utils.logging import disable_progress_bar

from clara.data.records import Chunk
from clara.errors import InputError
from clara.memory.codec import codebook_of
from clara.memory.compress import Encoding, make_codebook, write_memory_shard
from clara.memory.fingerprint import check, of_model
from clara.memory.shards import shard_name
from clara.memory.update import write_overlay
from clara.model import checkpoint
from clara.model.model import ClaraModel
from clara.processes import torch_threads
from clara.storage.base import StorageError
from pipelines.build_memory.outcome import MemoryJob
from pipelines.corpus.exact_duplicates import UniqueChunk
from pipelines.job.progress import ShardProgress


def default_num_shards(num_chunks: int) -> int:
    """Number of shards: up to 16 shards of at most 128 rows, up to 1,024 shards of 1,024 rows, beyond that 4,096 rows.

    With few chunks, there are a few shards for each worker; with many, shards have enough rows to fill batches with
    chunks of similar lengths. A power of two, so that a slightly larger corpus has the same shards, and chunks can be
    spilled before they are counted.
    """
    wanted = max(
        1, min(math.ceil(num_chunks / 128), 16), min(math.ceil(num_chunks / 1024), 1024), math.ceil(num_chunks / 4096)
    )
    return 1 << (wanted - 1).bit_length()


def compress_shard(
    job: MemoryJob,
    index: int,
    kept: Sequence[UniqueChunk],
    num_shards: int,
    codebook: Mapping[str, Any] | None,
    load_model: Callable[[], ClaraModel],
) -> dict[str, Any]:
    """Compress and write one shard, unless it is finished.

    Args:
        job: the job.
        index: number of the shard.
        kept: its chunks.
        num_shards: of the MEMORY.
        codebook: manifest entry of the codebook, which is already written to MEMORY; None: the codec has none.
        load_model: called if there is something to compress.

    Returns:
        The report of the shard. It reports bad input as `error`, so that other shards are still written.

    Raises:
        StorageError: the store does not answer.
    """
    name = shard_name(index, num_shards)
    progress = ShardProgress(job.output, name, len(kept))
    progress.report(0)
    try:
        if codebook and "error" in codebook:
            raise InputError(codebook["error"])
        # One thread a process: the cores are used by processes, and the last bits depend on the number of threads.
        with torch_threads(1):
            report = _write(job, index, name, [candidate.chunk for candidate in kept], progress, load_model)
        progress.report(len(kept))
    except StorageError:
        raise
    except InputError as error:
        report = {"name": name, "rows": 0, "files": [], "failures": [], "reused": False, "error": str(error)}
    lines = {candidate.chunk.chunk_id: candidate.line for candidate in kept}
    report["failures"] = [{**failure, "line": lines[failure["chunk_id"]]} for failure in report["failures"]]
    return report


def _write(
    job: MemoryJob,
    index: int,
    name: str,
    chunks: list[Chunk],
    progress: ShardProgress,
    load_model: Callable[[], ClaraModel],
) -> dict[str, Any]:
    if job.update:
        return write_overlay(
            load_model,
            chunks,
            job.update,
            index,
            job.output,
            fingerprint=job.fingerprint,
            batch_tokens=job.batch_tokens,
            on_progress=progress.report,
        )
    codebook = codebook_of(job.output, job.codec, job.fingerprint.hidden_size)
    encoding = Encoding(job.fingerprint, job.codec, job.batch_tokens, codebook)
    return write_memory_shard(load_model, chunks, job.output, name, encoding, progress.report)


def trained_codebook(
    job: MemoryJob, sample: Sequence[UniqueChunk], load_model: Callable[[], ClaraModel]
) -> dict[str, Any] | None:
    """The manifest entry of the codebook trained on a sample, or `{"error": …}`; None: the codec has none."""
    try:
        with torch_threads(1):
            encoding = Encoding(job.fingerprint, job.codec, job.batch_tokens)
            return make_codebook(load_model, [kept.chunk for kept in sample], job.output, encoding)
    except StorageError:
        raise
    except InputError as error:
        return {"error": str(error)}


def load_compressor(job: MemoryJob) -> ClaraModel:
    """The model of a job, in eval mode.

    Raises:
        InputError: the checkpoint or backbone on this machine differs from the one where the job was submitted.
    """
    disable_progress_bar()  # transformers' bar for weights; the job shows its own
    wanted = job.fingerprint
    model = checkpoint.load_compressor(job.checkpoint, wanted.dtype, backbone=job.backbone, device=job.device)
    found = of_model(model, wanted.encoding)
    check([wanted], found, f"--checkpoint {job.checkpoint} on {socket.gethostname()}")
    return model
