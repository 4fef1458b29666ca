"""Folds the overlays and tombstones of a MEMORY into base shards."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from clara.errors import InputError
from clara.memory.mean import MEAN, has_mean
from clara.memory.shards import KIND, finished_report, shard_name, write_plan, write_stored
from clara.memory.store import MemoryStore, complete_memory
from clara.storage import paths
from clara.storage.manifest import hash_of, read_manifest, up_to_date
from clara.storage.transfer import link


def compact_recipe(store: MemoryStore, num_shards: int) -> dict[str, Any]:
    """What determines the MEMORY that `compact` makes."""
    return {"job": "compact", "parent": store.hash, "num_shards": num_shards}


def compact(
    store: MemoryStore,
    directory: str | os.PathLike[str],
    *,
    num_shards: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Fold overlays and tombstones of a version into plain shards with the same live rows and stored numbers.

    Finished shards of an earlier, interrupted call are kept.

    Args:
        store: the version.
        directory: the new one.
        num_shards: of the new one; 0: as many.
        progress: called with (shards done, shards) after each.

    Returns:
        The manifest.

    Raises:
        InputError: the directory is the store's own, or a file is damaged.
    """
    if paths.absolute(directory) == paths.absolute(store.directory):
        raise InputError(f"--output {directory}: is the MEMORY that is compacted; give another directory")
    num_shards = num_shards or store.num_shards
    recipe = compact_recipe(store, num_shards)
    if up_to_date(directory, KIND, recipe):
        return read_manifest(directory, KIND)
    reports = []
    for index in range(num_shards):
        report = _compact_shard(store, directory, index, recipe)
        if report is not None:
            reports.append(report)
        progress(index + 1, num_shards)
    replaced = {*store.shard_names, MEAN}
    others = [entry for entry in store.manifest["files"] if entry["path"].partition("/")[0] not in replaced]
    link(store.directory, directory, others)
    return complete_memory(
        directory,
        reports,
        fingerprint=store.fingerprint_fields,
        codec=store.codec,
        num_shards=num_shards,
        recipe=recipe,
        counts=store.manifest["counts"],
        parent=store.hash,
        extra_files=others,
        mean=store.mean if has_mean(store.manifest) else None,
    )


def _compact_shard(
    store: MemoryStore, directory: str | os.PathLike[str], index: int, recipe: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The report of a plain shard, which is written unless it is finished; None if it has no row."""
    num_shards = recipe["num_shards"]
    rows = store.row_ids[store.row_ids % num_shards == index]
    name, plan = shard_name(index, num_shards), hash_of({**recipe, "index": index})
    report = finished_report(directory, name, plan)
    if report is None and len(rows):
        report = write_stored(
            directory,
            name,
            store.records(rows),
            store.stored(rows),
            store.codec,
            hidden_size=store.hidden_size,
            fingerprint=store.fingerprint,
            codebook=store.codebook,
        )
        write_plan(directory, name, plan, report)
    return report
