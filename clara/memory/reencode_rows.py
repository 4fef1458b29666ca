"""Encode some rows of a MEMORY again with a newer compressor, as overlays of a new version.

The new version holds its parent's files as hard links (copies if the file system has no hard links) and an overlay for
each base shard with a chosen row. Its manifest names the compressor of every shard (`clara.memory.mixed_versions`).
A shard without a live row is left out, so that old compressors disappear from the manifest in time.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clara.arrays import Ids
from clara.errors import InputError
from clara.memory.compress import Compressor, Encoding, write_memory_shard
from clara.memory.fingerprint import Fingerprint
from clara.memory.mean import MEAN, MOVED, has_mean, read_mean, sum_of, sum_of_shards, write_mean
from clara.memory.mixed_versions import FIELD
from clara.memory.reencode import check_follows, check_whole
from clara.memory.shards import KIND
from clara.memory.store import MemoryStore
from clara.memory.update import next_generation, overlay_name
from clara.storage.manifest import hash_of, read_manifest, up_to_date, write_manifest
from clara.storage.transfer import link

_ROWS_AT_ONCE = 64


def rows_recipe(store: MemoryStore, rows: Ids, fingerprint: Fingerprint, batch_tokens: int) -> dict[str, Any]:
    """What determines the MEMORY that `reencode_rows` makes."""
    return {
        "job": "reencode_rows",
        "parent": store.hash,
        "rows": hash_of(rows.tolist()),
        "fingerprint": fingerprint.as_dict(),
        "batch_tokens": batch_tokens,
    }


def reencode_rows(
    store: MemoryStore,
    row_ids: Sequence[int] | Ids,
    model: Compressor,
    output: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compress chosen rows again into overlays of a new version; the manifest is written last.

    Finished overlays of an earlier, interrupted call are kept. A product-quantised store's codebook stays: it was
    trained for the base version.

    Args:
        store: the version that it follows; may be mixed itself.
        row_ids: live rows, in any order.
        model: the new compressor.
        output: directory of the new version.
        fingerprint: of the new compressor; chunking and keys must be the store's.
        batch_tokens: tokens of a batch, padding included.
        progress: called with (overlays done, overlays) after each.

    Returns:
        The manifest of the new version.

    Raises:
        InputError: no row is given or one is not live, the fingerprint is for other chunks or keys, the output is the
            store itself, a row can't be compressed, or a file of the parent is missing or damaged.
    """
    check_follows(store, fingerprint, output)
    rows = np.unique(np.asarray(row_ids, np.int64))
    if not len(rows):
        raise InputError(f"{output}: no row of {store.directory} to encode again; choose at least one")
    store.shards_of(rows)  # every one is live
    if up_to_date(output, KIND, rows_recipe(store, rows, fingerprint, batch_tokens)):
        return read_manifest(output, KIND)
    encoding = Encoding(fingerprint, store.codec, batch_tokens, store.codebook)
    generation = next_generation(store.manifest["overlays"])
    home = rows % store.num_shards
    homes = np.unique(home).tolist()
    reports = []
    for index in homes:
        name = overlay_name(generation, index, store.num_shards)
        report = write_memory_shard(lambda: model, store.records(rows[home == index]), output, name, encoding)
        reports.append(check_whole(report, output))
        if progress is not None:
            progress(len(reports), len(homes))
    return _complete(store, rows, reports, output, fingerprint=fingerprint, batch_tokens=batch_tokens)


def _complete(
    store: MemoryStore,
    rows: Ids,
    reports: Sequence[dict[str, Any]],
    output: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    batch_tokens: int,
) -> dict[str, Any]:
    """Link what still holds live rows of the parent, and write the manifest, which is returned."""
    before = store.manifest
    made_by = dict(zip(store.shard_names, store.shard_fingerprints, strict=True))
    needed = {name for name, live in store.iter_shards() if len(np.setdiff1d(live, rows, assume_unique=True))}
    shards = {*store.shard_names}
    kept = [
        entry
        for entry in before["files"]
        if (folder := entry["path"].partition("/")[0]) in needed or folder not in {*shards, MEAN}
    ]
    link(store.directory, output, kept)
    older = {
        name: made_by[name].as_dict() for name in store.shard_names if name in needed and made_by[name] != fingerprint
    }
    mean = _new_mean(store, rows, reports, output) if has_mean(before) else None
    return write_manifest(
        output,
        kind=KIND,
        files=[*kept, *(file for report in reports for file in report["files"]), *([mean["file"]] if mean else [])],
        recipe=rows_recipe(store, rows, fingerprint, batch_tokens),
        counts={"rows": len(store), "reencoded": len(rows)},
        fingerprint=fingerprint.hash,
        parent=store.hash,
        fingerprint_fields=fingerprint.as_dict(),
        codec=store.codec,
        num_shards=store.num_shards,
        shards=[name for name in before["shards"] if name in needed],
        overlays=[*(name for name in before["overlays"] if name in needed), *(report["name"] for report in reports)],
        tombstones=before["tombstones"],
        **({FIELD: older} if older else {}),
        **({MOVED: mean["moved"]} if mean else {}),
    )


def _new_mean(
    store: MemoryStore, rows: Ids, reports: Sequence[dict[str, Any]], output: str | os.PathLike[str]
) -> dict[str, Any]:
    """Write the mean of the new version's rows, see `write_mean`."""
    before = sum_of(store.memory(rows[begin : begin + _ROWS_AT_ONCE]) for begin in range(0, len(rows), _ROWS_AT_ONCE))
    total = read_mean(store.artefact)[1] - before + sum_of_shards(output, [report["name"] for report in reports])
    return write_mean(output, total, len(store))
