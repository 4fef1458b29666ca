"""Which rows of a MEMORY are indexed together, and which are unchanged since an older version."""

from collections.abc import Iterator

import numpy as np

from clara.arrays import Ids
from clara.memory.store import MemoryStore
from clara.storage.manifest import hash_of

ADD_ROWS = 65_536


def pieces_of(store: MemoryStore, num_rows: int) -> Iterator[Ids]:
    """Row ids of all rows, shard by shard, in pieces of `num_rows`; the last piece of a shard may be smaller."""
    for _, rows in store.iter_shards():
        for begin in range(0, len(rows), num_rows):
            yield rows[begin : begin + num_rows]


def parts_of(store: MemoryStore, rows_of_part: int, without: Ids | None) -> Iterator[Ids]:
    """Row ids of each part, shard by shard, `rows_of_part` of each but the last; rows in `without` are left out."""
    held: list[Ids] = []
    for _, rows in store.iter_shards():
        held.append(rows if without is None else rows[~np.isin(rows, without)])
        while sum(map(len, held)) >= rows_of_part:
            joined = np.concatenate(held)
            yield joined[:rows_of_part]
            held = [joined[rows_of_part:]]
    if sum(map(len, held)):
        yield np.concatenate(held)


def sources_of(store: MemoryStore) -> list[list[str]]:
    """Name and sha256 of the tensors of each shard and overlay, in their order."""
    hashes = {
        entry["path"].rpartition("/")[0]: entry["sha256"]
        for entry in store.manifest["files"]
        if entry["path"].endswith("/memory.safetensors")
    }
    return [[name, hashes[name]] for name in store.shard_names]


def unchanged_rows(store: MemoryStore, before: list[list[str]], ids: Ids) -> Ids | None:
    """Rows, ascending, that are in the same file as in the parent's MEMORY, and whose ids are in its index.

    The newest file of a row counts. If every overlay of the parent still exists, the newest file of a row can only have
    become a newer one; so a row in a file that the parent had was in that file then too.
    """
    now = sources_of(store)
    overlays = [hash_of(pair) for pair in before if pair[0] not in store.manifest["shards"]]
    present = [hash_of(pair) for pair in now]
    if [pair for pair in present if pair in set(overlays)] != overlays:
        return None
    known = {hash_of(pair) for pair in before}
    same = [rows for pair, (_, rows) in zip(present, store.iter_shards(), strict=True) if pair in known]
    return np.intersect1d(np.concatenate([np.empty(0, np.int64), *same]), ids)
