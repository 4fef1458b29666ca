"""Compressing many chunks: batches that depend on the chunks alone, keys, shards."""

import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clara import product_quantiser
from clara.artefact import file_entry, hash_of
from clara.codec import Floats, check_memory, pq_width
from clara.errors import InputError
from clara.fingerprint import Fingerprint
from clara.memory import (
    finished_report,
    plan_hash,
    write_plan,
    write_shard,
)
from clara.product_quantiser import Codebook
from clara.records import Chunk, input_text

# When this many chunks of one shard fail and none succeeds, it is the model that is broken and not the texts.
_MIN_CHUNKS_FOR_VERDICT = 16
_BATCHES_A_START = 128  # full batches that take as long as the starting of as many


class Compressor(Protocol):
    """What compressing needs of a model."""

    @property
    def num_memory_tokens(self) -> int:
        """M."""
        ...

    @property
    def hidden_size(self) -> int:
        """D."""
        ...

    def document_ids(self, text: str) -> list[int]:
        """Tokens of a text, without special ones."""
        ...

    def compress(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Memory `[B, M, D]`, float32."""
        ...


# --- keys ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyProjection:
    """Seeded random projection of the flattened, normalised memory to a short key.

    Slot m has a random frame Q_m `[D, r_m]` with orthonormal columns, Σ r_m = KD, and key = concat_m √(D / r_m) · Q_mᵀ v_m, where v is the
    memory `[M, D]` divided by its norm over all M·D numbers. As E[Q_m Q_mᵀ] = (r_m / D) I, the inner product of two keys is in expectation the
    flattened cosine; with KD = M·D it is that cosine exactly. The frames hold about D·KD numbers, M times fewer than one matrix `[M·D, KD]`,
    and when slots have equal norms no larger variance.
    """

    frames: tuple[Floats, ...]

    def keys(self, memory: Floats | Tensor) -> Floats:
        """Keys `[n, KD]` of memories `[n, M, D]`; a memory of zeros has a key of zeros."""
        values = memory.detach().float().cpu().numpy() if isinstance(memory, Tensor) else np.asarray(memory, np.float32)
        norms = np.sqrt(np.square(values, dtype=np.float32).sum(axis=(1, 2), keepdims=True))
        unit = values / np.where(norms > 0, norms, 1.0)
        return np.concatenate([unit[:, slot] @ frame for slot, frame in enumerate(self.frames)], axis=1)


@functools.lru_cache(maxsize=4)
def key_projection(num_memory_tokens: int, hidden_size: int, key_size: int, seed: int) -> KeyProjection:
    """The projection of a fingerprint's `key_size` and `key_seed`.

    Raises:
        InputError: `key_size` is not between M and M·D.
    """
    if not num_memory_tokens <= key_size <= num_memory_tokens * hidden_size:
        raise InputError(
            f"key_size is {key_size}, expected M ≤ key_size ≤ M·D, here {num_memory_tokens} to {num_memory_tokens * hidden_size}; choose one between"
        )
    # RandomState's stream is frozen for good, unlike Generator's: old keys keep their meaning.
    random = np.random.RandomState(seed)
    frames = []
    for slot in range(num_memory_tokens):
        width = key_size // num_memory_tokens + (slot < key_size % num_memory_tokens)
        orthonormal, upper = np.linalg.qr(random.standard_normal((hidden_size, width)))
        signs = np.where(np.diag(upper) < 0, -1.0, 1.0)  # without it the frame's signs are LAPACK's choice
        frames.append((orthonormal * signs * math.sqrt(hidden_size / width)).astype(np.float32))
    return KeyProjection(tuple(frames))


# --- chunks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A chunk that could not be compressed, and why."""

    chunk: Chunk
    reason: str


def plan_batches(lengths: Sequence[int], batch_tokens: int, extra_tokens: int = 0) -> Iterator[range]:
    """Ranges over ascending lengths whose padded size, (longest + extra) · rows, is at most `batch_tokens`; one row at least."""
    begin = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (lengths[end] + extra_tokens) * (end + 1 - begin) > batch_tokens:
            yield range(begin, end)
            begin = end


def tight_batches(lengths: Sequence[int], batch_tokens: int, extra_tokens: int = 0) -> list[range]:
    """Ranges over ascending lengths within `batch_tokens`, as of `plan_batches`, chosen so that the least is computed.

    A batch costs its padded tokens and, for what it costs to start one, `batch_tokens` / 128 of them; the sum over all batches is the least there
    is. So a batch ends where the lengths jump, and is smaller where they are spread.
    """
    start_tokens = max(1, batch_tokens // _BATCHES_A_START)
    least = np.zeros(len(lengths) + 1, np.int64)  # tokens of the best batches over the first n rows
    begin_of = np.zeros(len(lengths) + 1, np.int64)
    places = np.arange(len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        width = lengths[end - 1] + extra_tokens
        first = end - max(1, min(end, batch_tokens // max(1, width)))
        costs = least[first:end] + width * (end - places[first:end])
        best = int(costs.argmin())
        least[end], begin_of[end] = costs[best] + start_tokens, first + best
    batches = []
    end = len(lengths)
    while end:
        batches.append(range(int(begin_of[end]), end))
        end = int(begin_of[end])
    return batches[::-1]


def compress_chunks(
    model: Compressor,
    chunks: Sequence[Chunk],
    *,
    batch_tokens: int,
    codec: str = "float16",
    told: Callable[[int], None] = lambda done: None,
) -> tuple[Floats, list[Failure]]:
    """Compress chunks in batches that depend on these chunks only, so that the same ones give the same bits on one machine.

    A batch that fails is halved until the failing chunks stand alone: their neighbours stay.

    Args:
        model: the compressor.
        chunks: n of them, in any order.
        batch_tokens: tokens of a batch, padding and memory tokens included.
        codec: a memory that it can't hold is a failure too.
        told: is called with the number of chunks that are done, after each batch.

    Returns:
        Memory `[n − failures, M, D]` of the surviving chunks in the order given, and the failures.

    Raises:
        Exception: as of the model, when at least 16 chunks fail and none succeeds.
    """
    failed: dict[int, Exception] = {}
    ids: dict[int, list[int]] = {}
    for index, chunk in enumerate(chunks):
        try:
            ids[index] = model.document_ids(input_text(chunk.title, chunk.text))
        except Exception as error:  # the boundary at which one bad text is told from its neighbours
            failed[index] = error
    order = sorted(ids, key=lambda index: (len(ids[index]), chunks[index].row_id))
    out = np.empty((len(chunks), model.num_memory_tokens, model.hidden_size), np.float32)
    batches = tight_batches([len(ids[i]) for i in order], batch_tokens, model.num_memory_tokens)
    pending = [[order[place] for place in batch] for batch in batches][::-1]
    num_done = len(failed)
    while pending:
        batch = pending.pop()
        try:
            memory = model.compress([ids[i] for i in batch]).detach().float().cpu().numpy()
            check_memory(memory, codec)
        except Exception as error:  # as above
            if len(batch) == 1:
                failed[batch[0]] = error
            else:
                pending += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
        else:
            out[batch] = memory
            num_done += len(batch)
            told(num_done)
    if len(failed) == len(chunks) >= _MIN_CHUNKS_FOR_VERDICT:
        raise failed[min(failed)]
    failures = [Failure(chunks[i], f"{type(failed[i]).__name__}: {failed[i]}") for i in sorted(failed)]
    return out[[i for i in range(len(chunks)) if i not in failed]], failures


def encode_chunks(model: Compressor, chunks: Sequence[Chunk], *, batch_tokens: int) -> Floats:
    """Memory `[n, M, D]` of chunks in the order given, float32.

    Raises:
        InputError: a chunk can't be compressed; names the first.
    """
    memory, failures = compress_chunks(model, chunks, batch_tokens=batch_tokens)
    if failures:
        first = failures[0]
        raise InputError(
            f"chunk {first.chunk.chunk_id} ({first.chunk.source}): not compressed ({first.reason}), {len(failures)} such; take it out of the corpus"
        )
    return memory


# --- shards ----------------------------------------------------------------------------------------------------------


def write_memory_shard(
    model: Callable[[], Compressor],
    chunks: Sequence[Chunk],
    directory: str | os.PathLike[str],
    name: str,
    *,
    fingerprint: Fingerprint,
    codec: str,
    batch_tokens: int,
    codebook: Codebook | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Compress the chunks of one shard and write it, or find that this has been done.

    Args:
        model: gives the compressor; called only where there is something to compress.
        chunks: the shard's chunks, each `row_id` once.
        directory: the MEMORY.
        name: the shard's folder.
        fingerprint: of the vectors.
        codec: one of `clara.codec.CODECS`.
        batch_tokens: tokens of a batch, padding included.
        codebook: of a product-quantised codec.
        told: see `compress_chunks`.

    Returns:
        `{"name", "rows", "files", "failures": [{"chunk_id", "source", "document_id", "text", "reason"}], "reused": whether it was there}`.
    """
    contents = f"{codec} {codebook.hash}" if codebook else codec
    plan = plan_hash(chunks, fingerprint=fingerprint.hash, codec=contents, batch_tokens=batch_tokens)
    finished = finished_report(directory, name, plan)
    if finished is not None:
        return {**finished, "reused": True}
    chunks = sorted(chunks, key=lambda chunk: chunk.row_id)
    memory, failures = compress_chunks(model(), chunks, batch_tokens=batch_tokens, codec=codec, told=told)
    dead = {failure.chunk.chunk_id for failure in failures}
    keys = key_projection(fingerprint.num_memory_tokens, fingerprint.hidden_size, fingerprint.key_size, fingerprint.key_seed).keys(memory)
    kept = [chunk for chunk in chunks if chunk.chunk_id not in dead]
    report = write_shard(directory, name, kept, memory, keys, codec, fingerprint=fingerprint.hash, codebook=codebook)
    report["failures"] = failure_report(failures)
    write_plan(directory, name, plan, report)
    return {**report, "reused": False}


def make_codebook(
    model: Callable[[], Compressor],
    chunks: Sequence[Chunk],
    directory: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    codec: str,
    batch_tokens: int,
) -> dict[str, Any] | None:
    """Train and write the codebook of a MEMORY, or find that this has been done.

    Args:
        model: gives the compressor; called only where there is something to compress.
        chunks: the sample, as of `clara.product_quantiser.sample_rows`.
        directory: the MEMORY.
        fingerprint: of the vectors.
        codec: of the MEMORY.
        batch_tokens: tokens of a batch, padding included.

    Returns:
        The manifest entry of its file; None where the codec needs none.

    Raises:
        InputError: too few memory tokens, or the disk refuses.
    """
    width = pq_width(codec)
    if not width:
        return None
    plan = hash_of({"codebook": plan_hash(chunks, fingerprint=fingerprint.hash, codec=codec, batch_tokens=batch_tokens)})
    finished = finished_report(directory, product_quantiser.CODEBOOK, plan)
    if finished is not None:
        return dict(finished["files"][0])
    chunks = sorted(chunks, key=lambda chunk: chunk.row_id)
    memory, _ = compress_chunks(model(), chunks, batch_tokens=batch_tokens, codec=codec)
    product_quantiser.save_codebook(directory, product_quantiser.train_codebook(memory, width))
    entry = file_entry(directory, product_quantiser.FILE)
    write_plan(directory, product_quantiser.CODEBOOK, plan, {"files": [entry]})
    return entry


def failure_report(failures: Sequence[Failure]) -> list[dict[str, str]]:
    """Failures as plain values: chunk, source, document, text and reason of each."""
    return [
        {
            "chunk_id": f.chunk.chunk_id,
            "source": f.chunk.source,
            "document_id": f.chunk.document_id,
            "text": f.chunk.text,
            "reason": f.reason,
        }
        for f in failures
    ]


class _Threads:
    """How many are inside `torch_threads` now, and what held before the first of them."""

    lock = threading.Lock()
    inside = 0
    before = 0


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with this many threads inside, which its last bits depend on; 0 leaves it alone.

    The setting is the process's: of several Python threads that are inside together, the last to leave restores it.
    """
    if not count:
        yield
        return
    with _Threads.lock:
        if not _Threads.inside:
            _Threads.before = torch.get_num_threads()
        _Threads.inside += 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _Threads.lock:
            _Threads.inside -= 1
            if not _Threads.inside:
                torch.set_num_threads(_Threads.before)
