"""Compressing many chunks: batches that depend on the chunks alone, keys, shards."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clara.arrays import Floats
from clara.data.records import Chunk, input_text
from clara.errors import InputError
from clara.memory import product_quantiser
from clara.memory.batches import tight_batches
from clara.memory.codec import check_memory, codec_named
from clara.memory.fingerprint import Fingerprint
from clara.memory.keys import key_projection
from clara.memory.product_quantiser import Codebook
from clara.memory.shards import finished_report, plan_hash, write_plan, write_shard
from clara.storage.manifest import file_entry, hash_of

if TYPE_CHECKING:
    from torch import Tensor

# When this many chunks of one shard fail and none succeeds, it is the model that is broken and not the texts.
_MIN_CHUNKS_FOR_VERDICT = 16


class Compressor(Protocol):
    """What compressing needs of a model."""

    @property
    def num_memory_tokens(self) -> int:
        """Number of memory tokens M."""
        ...

    @property
    def hidden_size(self) -> int:
        """Hidden size D."""
        ...

    def document_ids(self, text: str) -> list[int]:
        """Tokens of a text, without special ones."""
        ...

    def compress(self, texts: Sequence[Sequence[int]]) -> "Tensor":
        """Memory `[B, M, D]`, float32."""
        ...


@dataclass(frozen=True)
class Encoding:
    """How chunks become the stored numbers of a MEMORY.

    Attributes:
        fingerprint: of the vectors.
        codec: one of `clara.memory.codec.CODECS`.
        batch_tokens: tokens of a batch, padding and memory tokens included.
        codebook: of a product-quantised codec.
    """

    fingerprint: Fingerprint
    codec: str
    batch_tokens: int
    codebook: Codebook | None = None

    def plan(self, chunks: Sequence[Chunk]) -> str:
        """Hash of everything that the bytes of a shard of these chunks depend on."""
        codec = f"{self.codec} {self.codebook.hash}" if self.codebook else self.codec
        return plan_hash(chunks, fingerprint=self.fingerprint.hash, codec=codec, batch_tokens=self.batch_tokens)

    def keys(self, memory: Floats) -> Floats:
        """Keys `[n, KD]` of memories `[n, M, D]`."""
        made = self.fingerprint
        return key_projection(made.num_memory_tokens, made.hidden_size, made.key_size, made.key_seed).keys(memory)


@dataclass(frozen=True)
class Failure:
    """A chunk that could not be compressed, and why."""

    chunk: Chunk
    reason: str


def compress_chunks(
    model: Compressor,
    chunks: Sequence[Chunk],
    *,
    batch_tokens: int,
    codec: str = "float16",
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[Floats, list[Failure]]:
    """Compress chunks in batches that depend on these chunks only: one machine reproduces the result bit for bit.

    A batch that fails is halved until the failing chunks are alone; the other chunks are kept.

    Args:
        model: the compressor.
        chunks: n of them, in any order.
        batch_tokens: tokens of a batch, padding and memory tokens included.
        codec: a memory that it can't hold is a failure too.
        on_progress: called with the number of chunks done after each batch.

    Returns:
        Memory `[n − failures, M, D]` of the surviving chunks in the order given, and the failures.

    Raises:
        Exception: the model's own, when at least 16 chunks fail and none succeeds.
    """
    failed: dict[int, Exception] = {}
    ids: dict[int, list[int]] = {}
    for index, chunk in enumerate(chunks):
        try:
            ids[index] = model.document_ids(input_text(chunk.title, chunk.text))
        except Exception as error:  # one bad text must not fail its neighbours
            failed[index] = error
    order = sorted(ids, key=lambda index: (len(ids[index]), chunks[index].row_id))
    out = np.empty((len(chunks), model.num_memory_tokens, model.hidden_size), np.float32)
    batches = tight_batches([len(ids[i]) for i in order], batch_tokens, model.num_memory_tokens)
    pending = [[order[position] for position in batch] for batch in batches][::-1]
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
            on_progress(num_done)
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
            f"chunk {first.chunk.chunk_id} ({first.chunk.source}): not compressed ({first.reason}), "
            f"{len(failures)} such; take it out of the corpus"
        )
    return memory


def write_memory_shard(
    model: Callable[[], Compressor],
    chunks: Sequence[Chunk],
    directory: str | os.PathLike[str],
    name: str,
    encoding: Encoding,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Compress the chunks of one shard and write it, or find that this has been done.

    Args:
        model: gives the compressor; called only where there is something to compress.
        chunks: the shard's chunks, each `row_id` once.
        directory: the MEMORY.
        name: the shard's folder.
        encoding: how.
        on_progress: see `compress_chunks`.

    Returns:
        `{"name", "rows", "files", "failures": [{"chunk_id", "source", "document_id", "text", "reason"}], "reused":
        whether it was there}`.
    """
    plan = encoding.plan(chunks)
    finished = finished_report(directory, name, plan)
    if finished is not None:
        return {**finished, "reused": True}
    chunks = sorted(chunks, key=lambda chunk: chunk.row_id)
    codec, batch_tokens = encoding.codec, encoding.batch_tokens
    memory, failures = compress_chunks(model(), chunks, batch_tokens=batch_tokens, codec=codec, on_progress=on_progress)
    dead = {failure.chunk.chunk_id for failure in failures}
    kept = [chunk for chunk in chunks if chunk.chunk_id not in dead]
    report = write_shard(
        directory,
        name,
        kept,
        memory,
        encoding.keys(memory),
        codec,
        fingerprint=encoding.fingerprint.hash,
        codebook=encoding.codebook,
    )
    report["failures"] = failure_report(failures)
    write_plan(directory, name, plan, report)
    return {**report, "reused": False}


def make_codebook(
    model: Callable[[], Compressor],
    chunks: Sequence[Chunk],
    directory: str | os.PathLike[str],
    encoding: Encoding,
) -> dict[str, Any] | None:
    """Train and write the codebook of a MEMORY, or find that this has been done.

    Args:
        model: gives the compressor; called only where there is something to compress.
        chunks: the sample, as returned by `clara.memory.product_quantiser.sample_rows`.
        directory: the MEMORY.
        encoding: how, still without a codebook.

    Returns:
        The manifest entry of its file; None where the codec needs none.

    Raises:
        InputError: too few memory tokens, or the disk refuses.
    """
    width = codec_named(encoding.codec).codebook_width
    if not width:
        return None
    plan = hash_of({"codebook": encoding.plan(chunks)})
    finished = finished_report(directory, product_quantiser.CODEBOOK, plan)
    if finished is not None:
        return dict(finished["files"][0])
    chunks = sorted(chunks, key=lambda chunk: chunk.row_id)
    memory, _ = compress_chunks(model(), chunks, batch_tokens=encoding.batch_tokens, codec=encoding.codec)
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
