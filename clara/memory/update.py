"""Updates of a MEMORY: a new version for a changed corpus. Only new content is compressed.

Each version has its own directory. Files of the old version that still hold live rows are hard links in the new one
(copies if the file system has no hard links), so either directory can be removed. New rows, and rows whose record
changed, are in overlay shards. Row ids that are no longer in the corpus are listed as tombstones.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clara.arrays import Ids
from clara.data.records import Chunk
from clara.errors import InputError
from clara.memory.compress import Compressor, Encoding, Failure, compress_chunks, failure_report
from clara.memory.fingerprint import Fingerprint
from clara.memory.mean import MOVED, has_mean, mean_of_shard, sum_of, update_mean, write_replaced
from clara.memory.mixed_versions import refuse_mixed
from clara.memory.product_quantiser import CODEBOOK
from clara.memory.shards import (
    KIND,
    check_row_ids,
    finished_report,
    shard_name,
    stored_tensors,
    write_plan,
    write_stored,
)
from clara.memory.store import MemoryStore
from clara.storage.artefact import Artefact
from clara.storage.manifest import hash_of, write_manifest
from clara.storage.paths import Name
from clara.storage.transfer import link

_OVERLAY = "overlay-"


def overlay_name(generation: int, index: int, num_shards: int) -> str:
    """Folder of the overlay over shard `index` that the update of that generation made."""
    return f"{_OVERLAY}{generation:05d}-{shard_name(index, num_shards)}"


def next_generation(overlays: Iterable[str]) -> int:
    """Number of the next update over overlays of these names."""
    numbers = [name.removeprefix(_OVERLAY).partition("-")[0] for name in overlays if name.startswith(_OVERLAY)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)


def open_shard(source: Name | Artefact, index: int) -> MemoryStore:
    """Open only those files of a MEMORY that may hold rows of shard `index`; they may hold rows of other shards too.

    Files at a URL are copied when they are read: for most shards of an update that is the records alone.

    Raises:
        InputError: no finished MEMORY, or one of mixed versions.
    """
    artefact = Artefact.open(source, KIND, lazy=True)
    manifest = artefact.manifest
    refuse_mixed(manifest, str(artefact.folder))
    name = shard_name(index, manifest["num_shards"])
    # An overlay whose name has no shard number may hold rows of any shard.
    overlays = [overlay for overlay in manifest["overlays"] if overlay.endswith(name) or "shard-" not in overlay]
    return MemoryStore(artefact, [*(shard for shard in manifest["shards"] if shard == name), *overlays])


@dataclass(frozen=True)
class Changes:
    """How the chunks of one shard differ from what a MEMORY holds of it; each list ascends by `row_id`.

    Attributes:
        kept: unchanged.
        moved: with stored content, but another record (document, position, source).
        fresh: with content that is not stored.
        gone: ids of live rows that the new corpus no longer contains.
    """

    kept: list[Chunk]
    moved: list[Chunk]
    fresh: list[Chunk]
    gone: list[int]


def changes_of(chunks: Iterable[Chunk], known: Mapping[int, Chunk]) -> Changes:
    """Compare the chunks of the new corpus with the stored ones, by row id."""
    kept, moved, fresh = [], [], []
    for chunk in sorted(chunks, key=lambda chunk: chunk.row_id):
        before = known.get(chunk.row_id)
        if before == chunk:
            kept.append(chunk)
        elif before is not None and before.chunk_id == chunk.chunk_id:
            moved.append(chunk)
        else:
            fresh.append(chunk)
    return Changes(kept, moved, fresh, sorted(set(known) - {chunk.row_id for chunk in (*kept, *moved, *fresh)}))


def write_overlay(
    model: Callable[[], Compressor],
    chunks: Sequence[Chunk],
    old: str | os.PathLike[str],
    index: int,
    directory: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    batch_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Bring one shard up to date: compress new content, and copy the stored numbers if only the record changed.

    Args:
        model: gives the compressor; called only where there is something to compress.
        chunks: all chunks of the shard in the new corpus, each `row_id` once.
        old: the MEMORY that is updated; its codec and number of shards are kept.
        index: of the shard.
        directory: the new version.
        fingerprint: of the vectors, the old version's.
        batch_tokens: tokens of a batch, padding included.
        on_progress: see `clara.memory.compress.compress_chunks`.

    Returns:
        The report of `write_memory_shard`, with the numbers of live `rows` (`kept`, `moved`, `compressed`) and of those
        `gone`, the `folders` of the old version that are still needed, the `tombstones`, and `replaced`: whether old
        rows are replaced or gone, in which case a file of that name holds their sum.
    """
    store = open_shard(old, index)
    name = overlay_name(next_generation(store.manifest["overlays"]), index, store.num_shards)
    live = store.row_ids[store.row_ids % store.num_shards == index]
    changes = changes_of(chunks, {chunk.row_id: chunk for chunk in store.records(live)})
    check_row_ids(sorted(chunks, key=lambda chunk: chunk.row_id), name)
    encoding = Encoding(fingerprint, store.codec, batch_tokens, store.codebook)
    written = _write_changes(model, changes, store, directory, name, encoding, on_progress)
    kept = np.array([chunk.row_id for chunk in changes.kept], np.int64)
    dead = {row for row in store.manifest["tombstones"] if row % store.num_shards == index}
    dead |= set(live.tolist()) - set(kept.tolist())
    return {
        **written,
        "rows": len(kept) + written["overlay_rows"],
        "kept": len(kept),
        "moved": len(changes.moved),
        "compressed": written["overlay_rows"] - len(changes.moved),
        "gone": len(changes.gone),
        "folders": [folder for folder, rows in store.iter_shards() if np.isin(rows, kept).any()],
        "tombstones": sorted(dead - set(written["written"])),
        "replaced": _write_replaced(store, directory, name, changes.moved, np.setdiff1d(live, kept)),
    }


def _write_replaced(
    store: MemoryStore, directory: str | os.PathLike[str], name: str, moved: Sequence[Chunk], replaced: Ids
) -> bool:
    """Write the sum of the rows that an update replaces or removes. Returns whether there are such rows."""
    if not len(replaced) or not has_mean(store.manifest):
        return False
    rows = [chunk.row_id for chunk in moved]
    total = sum_of(store.memory(rows[begin : begin + 64]) for begin in range(0, len(rows), 64))
    gone = np.setdiff1d(replaced, rows)
    for shard, live in store.iter_shards():
        if count := int(np.isin(live, gone).sum()):
            total = total + count * mean_of_shard(store.artefact, shard)
    write_replaced(directory, name, total)
    return True


def _write_changes(
    model: Callable[[], Compressor],
    changes: Changes,
    store: MemoryStore,
    directory: str | os.PathLike[str],
    name: str,
    encoding: Encoding,
    on_progress: Callable[[int], None],
) -> dict[str, Any]:
    """Write the overlay of a shard with changes. Returns `written` row ids, `overlay_rows`, files and failures."""
    if not changes.moved and not changes.fresh:
        return {"name": name, "files": [], "failures": [], "reused": False, "overlay_rows": 0, "written": []}
    plan = hash_of({"update": store.hash, "contents": encoding.plan([*changes.moved, *changes.fresh])})
    finished = finished_report(directory, name, plan)
    if finished is not None:
        return {**finished, "reused": True}
    tensors = store.stored([chunk.row_id for chunk in changes.moved])
    rows = list(changes.moved)
    failures: list[Failure] = []
    if changes.fresh:
        memory, failures = compress_chunks(
            model(),
            changes.fresh,
            batch_tokens=encoding.batch_tokens,
            codec=encoding.codec,
            on_progress=on_progress,
        )
        encoded = stored_tensors(memory, encoding.keys(memory), encoding.codec, encoding.codebook)
        tensors = {tensor: np.concatenate([tensors[tensor], encoded[tensor]]) for tensor in tensors}
        dead = {failure.chunk.chunk_id for failure in failures}
        rows += [chunk for chunk in changes.fresh if chunk.chunk_id not in dead]
    order = np.argsort([chunk.row_id for chunk in rows])
    ordered = [rows[position] for position in order]
    report: dict[str, Any] = {"name": name, "files": []}
    if ordered:
        tensors = {tensor: values[order] for tensor, values in tensors.items()}
        report = write_stored(
            directory,
            name,
            ordered,
            tensors,
            store.codec,
            hidden_size=store.hidden_size,
            fingerprint=encoding.fingerprint.hash,
            codebook=store.codebook,
        )
    report |= {
        "failures": failure_report(failures),
        "overlay_rows": len(ordered),
        "written": [chunk.row_id for chunk in ordered],
    }
    write_plan(directory, name, plan, report)
    return {**report, "reused": False}


def complete_update(
    old: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    reports: Sequence[Mapping[str, Any]],
    *,
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any],
    extra_files: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Link the old version's files that are still needed, and write the manifest, once all overlays are written.

    Args:
        old: the version that was updated.
        directory: the new version.
        reports: one of `write_overlay` for each shard of the old version.
        recipe: what made it.
        counts: of the job.
        extra_files: manifest entries of further files.

    Raises:
        InputError: a shard has no report, or a file of the old version is missing or damaged.
    """
    artefact = Artefact.open(old, KIND, lazy=True)
    before = artefact.manifest
    if len(reports) != before["num_shards"]:
        raise InputError(
            f"{directory}: {len(reports)} shards updated, {old} has {before['num_shards']}; run the update again"
        )
    needed = {folder for report in reports for folder in report["folders"]}
    kept = [entry for entry in before["files"] if entry["path"].partition("/")[0] in {*needed, CODEBOOK}]
    link(old, directory, kept)
    mean = update_mean(artefact, directory, reports) if has_mean(before) else None
    return write_manifest(
        directory,
        kind=KIND,
        files=[
            *kept,
            *(file for report in reports for file in report["files"]),
            *([mean["file"]] if mean else []),
            *extra_files,
        ],
        recipe=recipe,
        counts=counts,
        fingerprint=before["fingerprint"],
        parent=artefact.hash,
        **{name: before[name] for name in ("fingerprint_fields", "codec", "num_shards")},
        shards=[name for name in before["shards"] if name in needed],
        overlays=[
            *(name for name in before["overlays"] if name in needed),
            *sorted(report["name"] for report in reports if report["overlay_rows"]),
        ],
        tombstones=sorted(row for report in reports for row in report["tombstones"]),
        **({MOVED: mean["moved"]} if mean else {}),
    )
