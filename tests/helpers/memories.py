"""MEMORY of random vectors, small and known."""

from pathlib import Path

import numpy as np

from clara.arrays import Floats
from clara.config.tree import Retrieval
from clara.data.records import Chunk, chunk_id, row_id
from clara.memory.copies import COPIES, Copy, copies_bytes
from clara.memory.fingerprint import Fingerprint
from clara.memory.keys import key_projection
from clara.memory.shards import shard_name, write_shard
from clara.memory.store import complete_memory
from clara.storage.manifest import write_file, write_manifest

M, D = 2, 12
FIRST_LEVEL = Retrieval().first_level


def chunk(number: int) -> Chunk:
    identity = chunk_id("", f"text {number}")
    return Chunk(row_id(identity), identity, f"document-{number}", "", f"text {number}", 0, 8, 3, False)


def write_memory(
    directory: Path,
    memory: Floats,
    *,
    key_size: int = M * D,
    num_shards: int = 3,
    tombstones: list[int] | None = None,
    copies: list[Copy] | None = None,
) -> Path:
    fingerprint = Fingerprint("b", "c", "t", "float32", M, D, "none", True, 96, 0, key_size, 0)
    keys = key_projection(M, D, key_size, 0).keys(memory)
    chunks = [chunk(number) for number in range(len(memory))]
    reports = []
    for shard in range(num_shards):
        rows = [i for i, c in enumerate(chunks) if c.row_id % num_shards == shard]
        reports.append(
            write_shard(
                directory,
                shard_name(shard, num_shards),
                [chunks[i] for i in rows],
                memory[rows],
                keys[rows],
                "float16",
                fingerprint=fingerprint.hash,
            )
        )
    manifest = complete_memory(
        directory,
        reports,
        fingerprint=fingerprint,
        codec="float16",
        num_shards=num_shards,
        recipe={},
        counts={"rows": len(memory)},
        extra_files=[write_file(directory, COPIES, *copies_bytes(copies))] if copies else [],
    )
    if tombstones:
        fields = {k: manifest[k] for k in ("fingerprint_fields", "codec", "num_shards", "shards", "overlays")}
        write_manifest(
            directory,
            kind="MEMORY",
            files=manifest["files"],
            recipe={},
            fingerprint=fingerprint.hash,
            tombstones=tombstones,
            **fields,
        )
    return directory


def random_memory(number: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((number, M, D)).astype(np.float32)
