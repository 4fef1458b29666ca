"""MEMORY: shards of compressed chunks, mapped and never loaded whole.

A shard is a folder with `records.parquet` and `memory.safetensors` (`memory [rows, M, …]` as the codec stores it, with its `scale`; `key [rows, KD]`
float16), rows sorted by `row_id`. A product-quantised MEMORY has its codebook beside them. A version is base shards, then overlays (the newest row wins), without tombstones, as the manifest names them.
"""

import functools
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from clara import artefact, storage
from clara.artefact import atomic_write, canonical_json, hash_of, manifest_hash, read_manifest, write_file, write_manifest
from clara.codec import Floats, decode_memory, encode_memory, layout, pq_width
from clara.document_rows import DocumentRows
from clara.errors import InputError
from clara.fingerprint import Accepted, Fingerprint
from clara.live_rows import Ids as Ids
from clara.live_rows import LiveRows
from clara.localise import localised
from clara.mapped import map_tensors
from clara.mixed import check_accepted, refuse_mixed, shard_fingerprints
from clara.product_quantiser import FILE as CODEBOOK_FILE
from clara.product_quantiser import Codebook, load_codebook
from clara.records import Chunk
from clara.tables import read_table

KIND = "MEMORY"
RECORDS, TENSORS, PLAN = "records.parquet", "memory.safetensors", "plan.json"

# A mapping holds a file descriptor and a records table some megabytes: the least recently used are let go.
_NUM_MAPPED, _NUM_TABLES = 256, 64
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


# --- writing ---------------------------------------------------------------------------------------------------------


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
        codec: one of `clara.codec.CODECS`.
        fingerprint: hash that stands in both files.
        codebook: of a product-quantised codec.

    Returns:
        `{"name", "rows", "files": [manifest entries]}`.

    Raises:
        InputError: lengths differ, two chunks have one `row_id`, the codec can't hold the numbers, or the disk refuses.
    """
    if not len(chunks) == len(memory) == len(keys):
        raise InputError(f"{name}: {len(chunks)} chunks, {len(memory)} memories, {len(keys)} keys; expected one of each a chunk")
    order = sorted(range(len(chunks)), key=lambda i: chunks[i].row_id)
    ordered = [chunks[i] for i in order]
    check_row_ids(ordered, name)
    tensors = {**encode_memory(memory[order], codec, codebook), "key": keys[order].astype(np.float16)}
    return write_stored(directory, name, ordered, tensors, codec, fingerprint=fingerprint)


def check_row_ids(chunks: Sequence[Chunk], name: str) -> None:
    """Refuse two chunks, ascending by `row_id`, of one id.

    Raises:
        InputError: there are two; names both.
    """
    for first, second in itertools.pairwise(chunks):
        if first.row_id == second.row_id:
            raise InputError(
                f"{name}: row_id {first.row_id} belongs to chunk {first.chunk_id} ({first.source}) and to {second.chunk_id} "
                f"({second.source}); leave one of them out"
            )


def write_stored(
    directory: str | os.PathLike[str],
    name: str,
    chunks: Sequence[Chunk],
    tensors: Mapping[str, NDArray[Any]],
    codec: str,
    *,
    fingerprint: str = "",
) -> dict[str, Any]:
    """Write one shard from what a shard holds: `tensors` as of `MemoryStore.stored`, each `[n, …]`, of n chunks ascending by `row_id`.

    Returns:
        `{"name", "rows", "files": [manifest entries]}`.

    Raises:
        InputError: the disk refuses.
    """
    metadata = canonical_json({"fingerprint": fingerprint, "codec": codec, "rows": len(chunks)})
    # One entry only: the library writes several in an order of its own, and equal shards have equal bytes.
    payload = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata={"clara": metadata})
    columns = {field.name: [getattr(chunk, field.name) for chunk in chunks] for field in _SCHEMA}
    table = pa.table(columns, schema=_SCHEMA.with_metadata({"clara": metadata}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    tensors_entry = write_file(directory, f"{name}/{TENSORS}", payload, len(chunks))
    records_entry = write_file(directory, f"{name}/{RECORDS}", sink.getvalue().to_pybytes(), len(chunks))
    return {"name": name, "rows": len(chunks), "files": [records_entry, tensors_entry]}


def plan_hash(chunks: Sequence[Chunk], *, fingerprint: str, codec: str, batch_tokens: int) -> str:
    """Hash of everything that a shard's bytes depend on, so that a finished one is known again."""
    records = sorted((chunk.row_id, chunk.chunk_id, hash_of(vars(chunk))) for chunk in chunks)
    return hash_of({"records": records, "fingerprint": fingerprint, "codec": codec, "batch_tokens": batch_tokens})


def write_plan(directory: str | os.PathLike[str], name: str, plan: str, report: Mapping[str, Any]) -> None:
    """Note beside a finished shard what it was made from, and the report about it."""
    tags = storage.folder(directory).tags(report["files"])
    noted = {"plan": plan, "report": report} | ({"tags": tags} if tags else {})
    atomic_write(storage.join(directory, name, PLAN), json.dumps(noted, ensure_ascii=False) + "\n")


def finished_report(directory: str | os.PathLike[str], name: str, plan: str) -> dict[str, Any] | None:
    """The report of a shard that was made from this very plan and is still whole; else None."""
    folder, path = storage.folder(directory), f"{name}/{PLAN}"
    try:
        noted = json.loads(folder.read(path) or b"")
        report = noted["report"]
        whole = noted["plan"] == plan and folder.unchanged(report["files"], noted.get("tags", {}))
    except storage.StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        return None
    folder.touch(path)  # whoever watches the progress counts it as done in this run
    return dict(report)


def complete_memory(
    directory: str | os.PathLike[str],
    shards: Sequence[Mapping[str, Any]],
    *,
    fingerprint: Fingerprint,
    codec: str,
    num_shards: int,
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any],
    parent: str = "",
    extra_files: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write the manifest of a full version: every shard is there by now. Returns the manifest."""
    shards = sorted(shards, key=lambda shard: shard["name"])
    return write_manifest(
        directory,
        kind=KIND,
        files=[*(file for shard in shards for file in shard["files"]), *extra_files],
        recipe=recipe,
        counts=counts,
        fingerprint=fingerprint.hash,
        parent=parent,
        fingerprint_fields=fingerprint.as_dict(),
        codec=codec,
        num_shards=num_shards,
        shards=[shard["name"] for shard in shards if shard["rows"]],
        overlays=[],
        tombstones=[],
    )


# --- reading ---------------------------------------------------------------------------------------------------------


class MemoryStore:
    """An open MEMORY version: row ids in RAM, everything else on disk until it is asked for.

    Attributes:
        directory: where it lies on this machine.
        name: what it was opened by, from the root, or its URL: what another machine finds it by.
        manifest: its manifest.
        hash: hash of the manifest, which an INDEX names.
        fingerprint: hash of its vectors' meaning; of the newest ones where versions are mixed.
        fingerprint_fields: the same, field by field.
        live: which rows are live, and where each lies.
        row_ids: int64 `[rows]`, ascending, live rows only.
    """

    def __init__(
        self, directory: Path, manifest: Mapping[str, Any], have: Callable[[str], None] = lambda path: None, name: str = ""
    ) -> None:
        self.directory, self.name = directory, name or storage.from_root(directory)
        self._have = have  # called with a file's path ahead of a look into it
        self.manifest, self.hash = manifest, manifest_hash(directory)
        self.fingerprint_fields = Fingerprint.from_dict(manifest.get("fingerprint_fields", {}), f"{directory}/manifest.json")
        self.fingerprint = self.fingerprint_fields.hash
        # lru_cache on a method would keep every store alive.
        self._tensors: Callable[[int], dict[str, NDArray[Any]]] = functools.lru_cache(_NUM_MAPPED)(self._map)
        self._table: Callable[[int], pa.Table] = functools.lru_cache(_NUM_TABLES)(self._read_table)
        self.shard_names: list[str] = [*manifest["shards"], *manifest["overlays"]]
        columns = [self._read_row_ids(shard) for shard in range(len(self.shard_names))]
        self.live = LiveRows(columns, manifest["tombstones"], str(directory))
        self.row_ids = self.live.row_ids

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], accept: Collection[Accepted] | None = None, verify: bool = False, *, mixed: bool = False
    ) -> "MemoryStore":
        """Open a MEMORY; the size of every file is checked.

        Args:
            directory: the MEMORY; of a URL its copy on this machine is opened.
            accept: fingerprints that the reader understands, one of which every shard must have; None: any one (only for tools that don't
                read the vectors' meaning).
            verify: read every byte against its sha256 as well.
            mixed: where `accept` is None, take shards of several versions too.

        Raises:
            InputError: unfinished, damaged, or made by another compressor.
        """
        name, directory = storage.from_root(directory), localised(directory, KIND, verify=verify)
        manifest = artefact.verify(directory, KIND) if verify else read_manifest(directory, KIND)
        for entry in manifest["files"]:
            path = Path(directory) / entry["path"]
            size = path.stat().st_size if path.is_file() else -1
            if size != entry["bytes"]:
                found = f"{size} bytes" if size >= 0 else "missing"
                raise InputError(f"{path}: {found}, the manifest says {entry['bytes']} bytes; make the MEMORY again, or copy it anew")
        if accept is not None:
            check_accepted(accept, manifest, str(directory))
        elif not mixed:
            refuse_mixed(manifest, str(directory))
        return cls(Path(directory), manifest, name=name)

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def num_memory_tokens(self) -> int:
        """M."""
        return self.fingerprint_fields.num_memory_tokens

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.fingerprint_fields.hidden_size

    @property
    def key_size(self) -> int:
        """Numbers in a key."""
        return self.fingerprint_fields.key_size

    @property
    def codec(self) -> str:
        """How memory is stored."""
        return str(self.manifest["codec"])

    @functools.cached_property
    def shard_fingerprints(self) -> list[Fingerprint]:
        """What made each of `shard_names`: the same, but where versions are mixed (see `clara.mixed`)."""
        return shard_fingerprints(self.manifest, str(self.directory))

    def shards_of(self, row_ids: Sequence[int] | Ids) -> NDArray[np.int32]:
        """Which of `shard_names` each row lies in `[n]`.

        Raises:
            InputError: a row is not there, or not live.
        """
        return self.live.shard_of[self.live.places(row_ids)]

    @functools.cached_property
    def codebook(self) -> Codebook | None:
        """Of a product-quantised codec; None with the others.

        Raises:
            InputError: it is missing or damaged.
        """
        self._have(CODEBOOK_FILE)
        width = pq_width(self.codec)
        return load_codebook(self.directory, width, self.hidden_size) if width else None

    @property
    def num_shards(self) -> int:
        """What `row_id` is taken modulo of; shards without rows have no folder."""
        return int(self.manifest["num_shards"])

    @functools.cached_property
    def _documents(self) -> DocumentRows:
        return DocumentRows([self._path(shard, RECORDS) for shard in range(len(self.shard_names))], self.live)

    @functools.cached_property
    def document_ids(self) -> list[str]:
        """Document of each of `row_ids`."""
        return self._documents.of_rows()

    def rows_of(self, document_id: str) -> list[int]:
        """Row ids of a document's chunks, ascending; empty where it has none."""
        return self._documents.rows_of(document_id)

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """Memory `[n, M, D]` of rows, decoded to float32.

        Raises:
            InputError: a row is not there, or not live.
        """
        out = np.empty((len(row_ids), self.num_memory_tokens, self.hidden_size), np.float32)
        for shard, where, places in self.live.by_shard(row_ids):
            tensors = self._tensors(shard)
            stored = {name: tensor[places] for name, tensor in tensors.items() if name != "key"}
            out[where] = decode_memory(stored, self.codec, self.hidden_size, self.codebook)
        return out

    def keys(self, row_ids: Sequence[int] | Ids | None = None) -> Floats:
        """Keys `[n, KD]` in float32; of all rows, in the order of `row_ids`, if None is given."""
        wanted = self.row_ids if row_ids is None else row_ids
        out = np.empty((len(wanted), self.key_size), np.float32)
        for shard, where, places in self.live.by_shard(wanted):
            out[where] = self._tensors(shard)["key"][places]
        return out

    def stored(self, row_ids: Sequence[int] | Ids) -> dict[str, NDArray[Any]]:
        """The tensors of rows as they lie in the shards, undecoded, in the order asked: what another shard takes over bit for bit."""
        shapes = {**layout(self.codec, self.num_memory_tokens, self.hidden_size), "key": (np.dtype(np.float16), (self.key_size,))}
        out = {name: np.empty((len(row_ids), *shape), kind) for name, (kind, shape) in shapes.items()}
        for shard, where, places in self.live.by_shard(row_ids):
            tensors = self._tensors(shard)
            for name in out:
                out[name][where] = tensors[name][places]
        return out

    def records(self, row_ids: Sequence[int] | Ids) -> list[Chunk]:
        """Records of rows, in the order asked."""
        found: list[Chunk | None] = [None] * len(row_ids)
        for shard, where, places in self.live.by_shard(row_ids):
            rows = self._table(shard).take(places).to_pylist()
            for index, row in zip(where.tolist(), rows, strict=True):
                found[index] = Chunk(**row)
        return [chunk for chunk in found if chunk is not None]

    def iter_shards(self) -> Iterator[tuple[str, Ids]]:
        """Each shard's name with its live row ids, ascending: the way to pass over everything, shard by shard."""
        yield from zip(self.shard_names, self.live.by_every_shard(), strict=True)

    def _path(self, shard: int, file: str) -> Path:
        self._have(f"{self.shard_names[shard]}/{file}")
        return self.directory / self.shard_names[shard] / file

    def _read_table(self, shard: int) -> pa.Table:
        return read_table(self._path(shard, RECORDS), [field.name for field in fields(Chunk)])

    def _map(self, shard: int) -> dict[str, NDArray[Any]]:
        path = self._path(shard, TENSORS)
        tensors = map_tensors(path)
        shapes = layout(self.codec, self.num_memory_tokens, self.hidden_size)
        for name, shape in {**{name: shape for name, (_, shape) in shapes.items()}, "key": (self.key_size,)}.items():
            if name not in tensors or tensors[name].shape[1:] != shape:
                found = list(tensors[name].shape) if name in tensors else "missing"
                raise InputError(f"{path}: {name} is {found}, expected [rows, {', '.join(map(str, shape))}]; make the MEMORY again")
        return tensors

    def _read_row_ids(self, shard: int) -> Ids:
        return read_table(self._path(shard, RECORDS), ["row_id"])["row_id"].to_numpy()
