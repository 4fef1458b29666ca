"""Files of a MEMORY shard: names, schema, writing."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from clara.arrays import Floats
from clara.data.records import Chunk
from clara.errors import InputError
from clara.memory.codec import encode_memory
from clara.memory.mean import SUM, write_sum
from clara.memory.product_quantiser import Codebook
from clara.storage import base, folders, paths
from clara.storage.folders import atomic_write
from clara.storage.manifest import canonical_json, hash_of, write_file

KIND = "MEMORY"
RECORDS, TENSORS, PLAN = "records.parquet", "memory.safetensors", "plan.json"
_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("chunk_id", pa.string()),
        ("document_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("source", pa.string()),
    ]
)


def shard_name(index: int, num_shards: int) -> str:
    """Folder of a shard; `index` is `row_id % num_shards`."""
    return f"shard-{index:05d}-of-{num_shards:05d}"


def write_shard(
    directory: str | os.PathLike[str],
    name: str,
    chunks: Sequence[Chunk],
    memory: Floats,
    keys: Floats,
    codec: str,
    *,
    fingerprint: str = "",
    codebook: Codebook | None = None,
) -> dict[str, Any]:
    """Write one shard, each file whole or not at all.

    Args:
        directory: the MEMORY.
        name: the shard's folder.
        chunks: n of them in any order.
        memory: `[n, M, D]`, in the chunks' order.
        keys: `[n, KD]`, in the chunks' order.
        codec: one of `clara.memory.codec.CODECS`.
        fingerprint: hash that is written into both files.
        codebook: of a product-quantised codec.

    Returns:
        `{"name", "rows", "files": [manifest entries]}`.

    Raises:
        InputError: lengths differ, two chunks have one `row_id`, the codec can't hold the numbers, or the disk refuses.
    """
    if not len(chunks) == len(memory) == len(keys):
        raise InputError(
            f"{name}: {len(chunks)} chunks, {len(memory)} memories, {len(keys)} keys; expected one of each a chunk"
        )
    order = sorted(range(len(chunks)), key=lambda i: chunks[i].row_id)
    ordered = [chunks[i] for i in order]
    check_row_ids(ordered, name)
    tensors = stored_tensors(memory[order], keys[order], codec, codebook)
    return write_stored(
        directory,
        name,
        ordered,
        tensors,
        codec,
        hidden_size=memory.shape[2],
        fingerprint=fingerprint,
        codebook=codebook,
    )


def stored_tensors(memory: Floats, keys: Floats, codec: str, codebook: Codebook | None) -> dict[str, NDArray[Any]]:
    """Memories `[n, M, D]` and keys `[n, KD]` as a shard stores them `[n, …]`, by name."""
    return {**encode_memory(memory, codec, codebook), "key": keys.astype(np.float16)}


def check_row_ids(chunks: Sequence[Chunk], name: str) -> None:
    """Refuse two chunks, ascending by `row_id`, of one id.

    Raises:
        InputError: there are two; names both.
    """
    for first, second in itertools.pairwise(chunks):
        if first.row_id == second.row_id:
            raise InputError(
                f"{name}: row_id {first.row_id} belongs to chunk {first.chunk_id} ({first.source}) and to "
                f"{second.chunk_id} ({second.source}); leave one of them out"
            )


def write_stored(
    directory: str | os.PathLike[str],
    name: str,
    chunks: Sequence[Chunk],
    tensors: Mapping[str, NDArray[Any]],
    codec: str,
    *,
    hidden_size: int,
    fingerprint: str = "",
    codebook: Codebook | None = None,
) -> dict[str, Any]:
    """Write one shard of n chunks, ascending by `row_id`, from stored `tensors [n, …]` (see `MemoryStore.stored`).

    `hidden_size` is D; the codebook is that of a product-quantised codec.

    Returns:
        `{"name", "rows", "files": [manifest entries]}`.

    Raises:
        InputError: the disk refuses.
    """
    metadata = canonical_json({"fingerprint": fingerprint, "codec": codec, "rows": len(chunks)})
    # One entry only: the library does not keep the order of several, and equal shards have equal bytes.
    payload = safetensors.numpy.save(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata={"clara": metadata}
    )
    columns = {field.name: [getattr(chunk, field.name) for chunk in chunks] for field in _SCHEMA}
    table = pa.table(columns, schema=_SCHEMA.with_metadata({"clara": metadata}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    tensors_entry = write_file(directory, f"{name}/{TENSORS}", payload, len(chunks))
    records_entry = write_file(directory, f"{name}/{RECORDS}", sink.getvalue().to_pybytes(), len(chunks))
    sum_entry = write_sum(directory, name, tensors, codec, hidden_size, codebook)
    return {"name": name, "rows": len(chunks), "files": [records_entry, tensors_entry, sum_entry]}


def plan_hash(chunks: Sequence[Chunk], *, fingerprint: str, codec: str, batch_tokens: int) -> str:
    """Hash of everything that a shard's bytes depend on, so that a finished one is known again."""
    records = sorted((chunk.row_id, chunk.chunk_id, hash_of(vars(chunk))) for chunk in chunks)
    encoding = {"fingerprint": fingerprint, "codec": codec, "batch_tokens": batch_tokens}
    return hash_of({"records": records, **encoding, "files": [RECORDS, TENSORS, SUM]})


def write_plan(directory: str | os.PathLike[str], name: str, plan: str, report: Mapping[str, Any]) -> None:
    """Note beside a finished shard what it was made from, and the report about it."""
    tags = folders.folder(directory).tags(report["files"])
    noted = {"plan": plan, "report": report} | ({"tags": tags} if tags else {})
    atomic_write(paths.join(directory, name, PLAN), json.dumps(noted, ensure_ascii=False) + "\n")


def finished_report(directory: str | os.PathLike[str], name: str, plan: str) -> dict[str, Any] | None:
    """The report of a shard that was made from this very plan and is still whole; else None."""
    folder, path = folders.folder(directory), f"{name}/{PLAN}"
    try:
        noted = json.loads(folder.read(path) or b"")
        report = noted["report"]
        whole = noted["plan"] == plan and folder.unchanged(report["files"], noted.get("tags", {}))
    except base.StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        return None
    folder.touch(path)  # whoever watches the progress counts it as done in this run
    return dict(report)
