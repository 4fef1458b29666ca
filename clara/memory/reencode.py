"""A whole MEMORY again, with another compressor."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from clara.errors import InputError
from clara.memory import product_quantiser
from clara.memory.codec import CODECS, codebook_of
from clara.memory.compress import Compressor, Encoding, make_codebook, write_memory_shard
from clara.memory.copies import COPIES
from clara.memory.fingerprint import Fingerprint
from clara.memory.shards import KIND, shard_name
from clara.memory.store import MemoryStore, complete_memory
from clara.storage import paths
from clara.storage.manifest import file_entry, read_manifest, up_to_date
from clara.storage.transfer import link


def reencode_recipe(store: MemoryStore, fingerprint: Fingerprint, batch_tokens: int) -> dict[str, Any]:
    """What determines the MEMORY that `reencode` makes."""
    return {
        "job": "reencode",
        "parent": store.hash,
        "fingerprint": fingerprint.as_dict(),
        "codec": store.codec,
        "batch_tokens": batch_tokens,
    }


def reencode_shard(
    store: MemoryStore,
    index: int,
    model: Callable[[], Compressor],
    output: str | os.PathLike[str],
    encoding: Encoding,
) -> dict[str, Any]:
    """Compress the live rows of shard `index` of a store again; shards may be made by different processes.

    Returns:
        The report of `write_memory_shard`; with 0 rows and no files where the shard has no live row.

    Raises:
        InputError: a row that the store holds can't be compressed; a version must have every row.
    """
    name = shard_name(index, store.num_shards)
    rows = store.row_ids[store.row_ids % store.num_shards == index]
    if not len(rows):
        return {"name": name, "rows": 0, "files": [], "failures": [], "reused": False}
    return check_whole(write_memory_shard(model, store.records(rows), output, name, encoding), output)


def check_whole(report: dict[str, Any], output: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a re-encoded shard.

    Raises:
        InputError: a row of it can't be compressed.
    """
    if report["failures"]:
        first = report["failures"][0]
        raise InputError(
            f"{output}/{report['name']}: {len(report['failures'])} rows not compressed, first {first['chunk_id']}: "
            f"{first['reason']}; fix the compressor"
        )
    return report


def new_encoding(
    store: MemoryStore,
    model: Callable[[], Compressor],
    output: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    batch_tokens: int,
) -> Encoding:
    """The store's codec with the new compressor, whose codebook the first process that needs one trains."""
    encoding = Encoding(fingerprint, store.codec, batch_tokens)
    if not CODECS[store.codec].has_codebook:
        return encoding
    sample = store.records(product_quantiser.sample_rows(store.row_ids.tolist(), store.num_memory_tokens))
    make_codebook(model, sample, output, encoding)
    return replace(encoding, codebook=codebook_of(output, store.codec, store.hidden_size))


def reencode_shards(
    store: MemoryStore,
    shards: Iterable[int],
    model: Compressor,
    output: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    batch_tokens: int,
) -> Iterator[dict[str, Any]]:
    """The reports of some shards, compressed again one after the other; finished ones are skipped.

    Raises:
        InputError: see `reencode_shard`.
    """
    encoding = new_encoding(store, lambda: model, output, fingerprint=fingerprint, batch_tokens=batch_tokens)
    for index in shards:
        yield reencode_shard(store, index, lambda: model, output, encoding)


def complete_reencode(
    store: MemoryStore,
    reports: Sequence[dict[str, Any]],
    output: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    batch_tokens: int,
) -> dict[str, Any]:
    """Write the manifest of a re-encoded MEMORY, whose parent is the store. Returns the manifest.

    Raises:
        InputError: rows are missing.
    """
    num_rows = sum(report["rows"] for report in reports)
    if num_rows != len(store):
        raise InputError(
            f"{output}: {num_rows} rows re-encoded, {store.directory} has {len(store)}; run it again, "
            "finished shards are kept"
        )
    codebooks = [file_entry(output, product_quantiser.FILE)] if CODECS[store.codec].has_codebook else []
    copies = [entry for entry in store.manifest["files"] if entry["path"] == COPIES]
    link(store.directory, output, copies)
    return complete_memory(
        output,
        reports,
        fingerprint=fingerprint,
        codec=store.codec,
        num_shards=store.num_shards,
        recipe=reencode_recipe(store, fingerprint, batch_tokens),
        counts={"rows": num_rows},
        parent=store.hash,
        extra_files=[*codebooks, *copies],
    )


def reencode(
    store: MemoryStore,
    model: Compressor,
    output: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compress every live row of a store again into a new full version; the manifest is written last.

    Finished shards of an earlier, interrupted call are kept.

    Args:
        store: the version that it follows.
        model: the new compressor.
        output: directory of the new version.
        fingerprint: of the new compressor, see `clara.memory.fingerprint.of_model`; chunking and keys must be the
            store's.
        batch_tokens: tokens of a batch, padding included.
        progress: called with (shards done, shards) after each.

    Returns:
        The manifest of the new version.

    Raises:
        InputError: the fingerprint is for other chunks or keys, the output is the store itself, or a row can't be
            compressed.
    """
    check_follows(store, fingerprint, output)
    if up_to_date(output, KIND, reencode_recipe(store, fingerprint, batch_tokens)):
        return read_manifest(output, KIND)
    reports = []
    for report in reencode_shards(
        store, range(store.num_shards), model, output, fingerprint=fingerprint, batch_tokens=batch_tokens
    ):
        reports.append(report)
        if progress is not None:
            progress(len(reports), store.num_shards)
    return complete_reencode(store, reports, output, fingerprint=fingerprint, batch_tokens=batch_tokens)


def check_follows(store: MemoryStore, fingerprint: Fingerprint, output: str | os.PathLike[str]) -> None:
    """Refuse a re-encoding that could not be switched to: only the compressor may differ from the store's.

    Raises:
        InputError: another field differs, or the output is the store's own directory.
    """
    same = replace(
        fingerprint, compressor=store.fingerprint_fields.compressor, backbone=store.fingerprint_fields.backbone
    )
    if same != store.fingerprint_fields:
        found, wanted = same.as_dict(), store.fingerprint_fields.as_dict()
        unequal = ", ".join(
            f"{name}: {wanted[name]!r} stored, {found[name]!r} now" for name in wanted if wanted[name] != found[name]
        )
        raise InputError(
            f"{store.directory}: cannot be re-encoded with other settings ({unequal}); build a MEMORY from the corpus"
        )
    if paths.absolute(output) == paths.absolute(store.directory):
        raise InputError(f"output {output}: is the MEMORY that is re-encoded; give another directory")
