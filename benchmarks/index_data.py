"""Clustered synthetic MEMORY for benchmarks/index.py and index_keys.py, made in blocks.

For index.py: payload of 512 bytes per row (int8, 8 memory tokens of 60 numbers), keys of 256 numbers.
"""

import time
from pathlib import Path

import numpy as np

from clara.data.records import Chunk
from clara.index.recall import exact_search
from clara.memory.fingerprint import Fingerprint
from clara.memory.keys import key_projection
from clara.memory.shards import shard_name, write_shard
from clara.memory.store import MemoryStore, complete_memory

TOKENS, WIDTH, KEY = 8, 60, 256
SHARD_ROWS, ROWS_OF_CLUSTER = 62_500, 500
SPREAD, NOISE = 0.7, 0.5
_BLOCK = 12_500


def make_memory(
    folder: Path,
    rows: int,
    seed: int = 0,
    *,
    shape: tuple[int, int] = (TOKENS, WIDTH),
    key_size: int = KEY,
    shard_rows: int = SHARD_ROWS,
    common: float = 0.0,
) -> float:
    """MEMORY of that many rows under `folder`, unless it is there. Returns the seconds that it took.

    Args:
        folder: gets `memory`.
        rows: their number.
        seed: draws them.
        shape: M and D.
        key_size: numbers of a key.
        shard_rows: rows of a shard.
        common: standard deviation of a vector that is added to all rows; that of a cluster's centre is 1.
    """
    began, directory = time.monotonic(), folder / "memory"
    if (directory / "manifest.json").is_file():
        return 0.0
    fingerprint = Fingerprint(
        "synthetic", "synthetic", "synthetic", "float32", *shape, "none", True, 96, 0, key_size, 0
    )
    projection = key_projection(*shape, key_size, 0)
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, rows // ROWS_OF_CLUSTER), *shape), np.float32)
    if common:
        centres += common * rng.standard_normal(shape, np.float32)
    num_shards = -(-rows // shard_rows)
    reports = []
    for shard in range(num_shards):
        rng = np.random.default_rng([seed, shard])
        size = min(shard_rows, rows - shard * shard_rows)
        # Ids are random, and belong to their shard as those of a real MEMORY do.
        ids = (rng.choice(2**44, size, replace=False) * num_shards + shard).tolist()
        memory = np.empty((size, *shape), np.float32)
        for begin in range(0, size, _BLOCK):
            part = memory[begin : begin + _BLOCK]
            part[:] = centres[rng.integers(len(centres), size=len(part))] + SPREAD * rng.standard_normal(
                part.shape, np.float32
            )
        keys = projection.keys(memory)
        chunks = [Chunk(i, f"{i:016x}", f"{i:016x}", "", "", 0, 0, 0, False) for i in ids]
        reports.append(
            write_shard(
                directory, shard_name(shard, num_shards), chunks, memory, keys, "int8", fingerprint=fingerprint.hash
            )
        )
        print(f"data: shard {shard + 1} of {num_shards}", flush=True)
    complete_memory(
        directory,
        reports,
        fingerprint=fingerprint,
        codec="int8",
        num_shards=num_shards,
        recipe={"seed": seed},
        counts={"rows": rows},
    )
    return time.monotonic() - began


def make_queries(folder: Path, count: int, num_exact: int, seed: int = 1) -> None:
    """Noisy rows, their keys, and the exact neighbours in the whole payload of the first `num_exact`."""
    if (folder / "exact.npy").is_file():
        return
    store = MemoryStore.open(folder / "memory")
    rng = np.random.default_rng(seed)
    rows = store.row_ids[np.sort(rng.choice(len(store), count, replace=False))]
    memory = store.memory(rng.permutation(rows))
    lengths = np.sqrt(np.square(memory).sum(axis=(1, 2), keepdims=True))
    query = memory + NOISE * lengths / np.sqrt(TOKENS * WIDTH) * rng.standard_normal(memory.shape, np.float32)
    np.save(folder / "query.npy", query)
    np.save(folder / "query-keys.npy", key_projection(TOKENS, WIDTH, KEY, 0).keys(query))
    np.save(folder / "exact.npy", exact_search(store, query[:num_exact], 10))


def make_plain_keys(folder: Path) -> None:
    """The same keys in float32 as .npy files, for systems that know no MEMORY, and the row id of each."""
    if (folder / "key-rows.npy").is_file():
        return
    store = MemoryStore.open(folder / "memory")
    (folder / "keys").mkdir(exist_ok=True)
    order = []
    for number, (_, rows) in enumerate(store.iter_shards()):
        np.save(folder / "keys" / f"{number:05d}.npy", store.keys(rows))
        order.append(rows)
    np.save(folder / "key-rows.npy", np.concatenate(order))
