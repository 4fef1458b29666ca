"""MEMORY: shards of compressed chunks, mapped and never loaded whole.

A shard is a folder with `records.parquet` and `memory.safetensors` (`memory [rows, M, …]` as the codec stores it, with
its `scale`; `key [rows, KD]` float16), rows sorted by `row_id`, and `sum.safetensors` (`clara.memory.mean`). Beside
them are the mean of the vectors and the codebook of a product-quantised MEMORY. A version is base shards, then overlays
(the newest row wins), without tombstones, as the manifest names them.
"""

import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clara.arrays import Floats, Ids
from clara.data.records import Chunk
from clara.errors import InputError
from clara.memory.codec import codebook_of, decode_memory, layout
from clara.memory.copies import COPIES, has_copies
from clara.memory.document_rows import DocumentRows
from clara.memory.fingerprint import Accepted, Fingerprint, of_memory
from clara.memory.live_rows import LiveRows
from clara.memory.mean import MOVED, read_mean, sum_of_shards, write_mean
from clara.memory.mixed_versions import check_accepted, refuse_mixed, shard_fingerprints
from clara.memory.product_quantiser import FILE as CODEBOOK_FILE
from clara.memory.product_quantiser import Codebook
from clara.memory.shards import KIND, RECORDS, TENSORS
from clara.storage import paths
from clara.storage.artefact import Artefact
from clara.storage.manifest import write_manifest
from clara.storage.mapped import map_tensors
from clara.storage.paths import Name
from clara.storage.tables import read_table

# A mapping holds a file descriptor and a records table some megabytes: the least recently used are let go.
_NUM_MAPPED, _NUM_TABLES = 256, 64


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
    mean: Floats | None = None,
) -> dict[str, Any]:
    """Write the manifest of a full version: every shard is there by now. Returns the manifest.

    `mean` is that of an older version, which is kept; None: it is computed from the shards.
    """
    shards = sorted(shards, key=lambda shard: shard["name"])
    total = np.zeros((fingerprint.num_memory_tokens, fingerprint.hidden_size))
    total += sum_of_shards(directory, [shard["name"] for shard in shards if shard["files"]])
    written = write_mean(directory, total, sum(shard["rows"] for shard in shards), mean=mean)
    return write_manifest(
        directory,
        kind=KIND,
        files=[*(file for shard in shards for file in shard["files"]), written["file"], *extra_files],
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
        **{MOVED: written["moved"]},
    )


class MemoryStore:
    """An open MEMORY version: row ids in RAM, everything else on disk until it is asked for.

    Attributes:
        artefact: the opened MEMORY.
        directory: its folder on this machine.
        name: the absolute path or URL that it was opened by, which other machines can open too.
        manifest: its manifest.
        hash: hash of the manifest, which an INDEX names.
        fingerprint: hash of its vectors' meaning; of the newest ones where versions are mixed.
        fingerprint_fields: the same, field by field.
        live: which rows are live, and the shard and position of each.
        row_ids: int64 `[rows]`, ascending, live rows only.
    """

    def __init__(self, artefact: Artefact, shard_names: Sequence[str] | None = None) -> None:
        """Read the row ids of some shards, by default of all.

        Raises:
            InputError: a file of a shard is missing or damaged.
        """
        self.artefact, self.directory, self.name = artefact, artefact.folder, paths.from_root(artefact.name)
        manifest = self.manifest = artefact.manifest
        self.hash, self.fingerprint_fields = artefact.hash, of_memory(artefact)
        self.fingerprint = self.fingerprint_fields.hash
        # lru_cache on a method would keep every store alive.
        self._tensors: Callable[[int], dict[str, NDArray[Any]]] = functools.lru_cache(_NUM_MAPPED)(self._map)
        self._table: Callable[[int], pa.Table] = functools.lru_cache(_NUM_TABLES)(self._read_table)
        self.shard_names = [*manifest["shards"], *manifest["overlays"]] if shard_names is None else [*shard_names]
        columns = [self._read_row_ids(shard) for shard in range(len(self.shard_names))]
        self.live = LiveRows(columns, manifest["tombstones"], str(self.directory))
        self.row_ids = self.live.row_ids

    @classmethod
    def open(
        cls,
        source: Name | Artefact,
        accept: Collection[Accepted] | None = None,
        verify: bool = False,
        *,
        mixed: bool = False,
    ) -> "MemoryStore":
        """Open a MEMORY; the size of every file is checked.

        Args:
            source: the MEMORY, or its directory; of a URL its copy on this machine is opened.
            accept: fingerprints that the reader understands, one of which every shard must have; None: any one (only
                for tools that don't read the vectors' meaning).
            verify: read every byte against its sha256 as well.
            mixed: where `accept` is None, take shards of several versions too.

        Raises:
            InputError: unfinished, damaged, or made by another compressor.
        """
        artefact = Artefact.open(source, KIND, verify=verify)
        artefact.check_sizes()
        if accept is not None:
            check_accepted(accept, artefact.manifest, str(artefact.folder))
        elif not mixed:
            refuse_mixed(artefact.manifest, str(artefact.folder))
        return cls(artefact)

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def num_memory_tokens(self) -> int:
        """Number of memory tokens M."""
        return self.fingerprint_fields.num_memory_tokens

    @property
    def hidden_size(self) -> int:
        """Hidden size D."""
        return self.fingerprint_fields.hidden_size

    @property
    def key_size(self) -> int:
        """Numbers in a key."""
        return self.fingerprint_fields.key_size

    @property
    def codec(self) -> str:
        """Name of the codec of its vectors."""
        return str(self.manifest["codec"])

    @functools.cached_property
    def shard_fingerprints(self) -> list[Fingerprint]:
        """Fingerprint of each of `shard_names`; they differ if versions are mixed (`clara.memory.mixed_versions`)."""
        names = [*self.manifest["shards"], *self.manifest["overlays"]]
        made = dict(zip(names, shard_fingerprints(self.manifest, str(self.directory)), strict=True))
        return [made[name] for name in self.shard_names]

    def shards_of(self, row_ids: Sequence[int] | Ids) -> NDArray[np.int32]:
        """Indices `[n]` into `shard_names`: the shard of each row.

        Raises:
            InputError: a row is not there, or not live.
        """
        return self.live.shard_of[self.live.positions(row_ids)]

    @functools.cached_property
    def codebook(self) -> Codebook | None:
        """Of a product-quantised codec; None with the others.

        Raises:
            InputError: it is missing or damaged.
        """
        self.artefact.file(CODEBOOK_FILE)
        return codebook_of(self.directory, self.codec, self.hidden_size)

    @functools.cached_property
    def mean(self) -> Floats:
        """Mean `[M, D]` of its vectors, which a centred score subtracts from each row.

        Raises:
            InputError: it has none, because an older program made it, or the file is damaged.
        """
        return read_mean(self.artefact)[0]

    @property
    def num_shards(self) -> int:
        """What `row_id` is taken modulo of; shards without rows have no folder."""
        return int(self.manifest["num_shards"])

    @functools.cached_property
    def _documents(self) -> DocumentRows:
        copies = self.artefact.file(COPIES) if has_copies(self.manifest) else None
        return DocumentRows(self._tables, self.live, copies)

    @functools.cached_property
    def _sources(self) -> DocumentRows:
        return DocumentRows(self._tables, self.live, column="source")

    @property
    def _tables(self) -> list[Path]:
        return [self._path(shard, RECORDS) for shard in range(len(self.shard_names))]

    @functools.cached_property
    def document_ids(self) -> list[str]:
        """Document of each of `row_ids`."""
        return self._documents.of_rows()

    def rows_of(self, document_id: str) -> list[int]:
        """Row ids of a document's chunks, ascending; empty where it has none. See `DocumentRows.rows_of` for copies."""
        return self._documents.rows_of(document_id)

    def rows_of_source(self, source: str) -> list[int]:
        """Row ids of the chunks from an input file, ascending; empty where there are none."""
        return self._sources.rows_of(source)

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """Memory `[n, M, D]` of rows, decoded to float32.

        Raises:
            InputError: a row is not there, or not live.
        """
        out = np.empty((len(row_ids), self.num_memory_tokens, self.hidden_size), np.float32)
        for shard, where, positions in self.live.by_shard(row_ids):
            tensors = self._tensors(shard)
            stored = {name: tensor[positions] for name, tensor in tensors.items() if name != "key"}
            out[where] = decode_memory(stored, self.codec, self.hidden_size, self.codebook)
        return out

    def keys(self, row_ids: Sequence[int] | Ids | None = None) -> Floats:
        """Keys `[n, KD]` in float32; of all rows, in the order of `row_ids`, if None is given."""
        wanted = self.row_ids if row_ids is None else row_ids
        out = np.empty((len(wanted), self.key_size), np.float32)
        for shard, where, positions in self.live.by_shard(wanted):
            out[where] = self._tensors(shard)["key"][positions]
        return out

    def stored(self, row_ids: Sequence[int] | Ids) -> dict[str, NDArray[Any]]:
        """The undecoded tensors of rows, in the order of `row_ids`, to be written into another shard bit for bit."""
        shapes = {
            **layout(self.codec, self.num_memory_tokens, self.hidden_size),
            "key": (np.dtype(np.float16), (self.key_size,)),
        }
        out = {name: np.empty((len(row_ids), *shape), kind) for name, (kind, shape) in shapes.items()}
        for shard, where, positions in self.live.by_shard(row_ids):
            tensors = self._tensors(shard)
            for name in out:
                out[name][where] = tensors[name][positions]
        return out

    def records(self, row_ids: Sequence[int] | Ids) -> list[Chunk]:
        """Records of rows, in the order asked."""
        found: list[Chunk | None] = [None] * len(row_ids)
        for shard, where, positions in self.live.by_shard(row_ids):
            rows = self._table(shard).take(positions).to_pylist()
            for index, row in zip(where.tolist(), rows, strict=True):
                found[index] = Chunk(**row)
        return [chunk for chunk in found if chunk is not None]

    def iter_shards(self) -> Iterator[tuple[str, Ids]]:
        """Each shard's name with its live row ids, ascending: the way to pass over everything, shard by shard."""
        yield from zip(self.shard_names, self.live.by_every_shard(), strict=True)

    def _path(self, shard: int, file: str) -> Path:
        return self.artefact.file(f"{self.shard_names[shard]}/{file}")

    def _read_table(self, shard: int) -> pa.Table:
        return read_table(self._path(shard, RECORDS), [field.name for field in fields(Chunk)])

    def _map(self, shard: int) -> dict[str, NDArray[Any]]:
        path = self._path(shard, TENSORS)
        tensors = map_tensors(path)
        shapes = layout(self.codec, self.num_memory_tokens, self.hidden_size)
        for name, shape in {**{name: shape for name, (_, shape) in shapes.items()}, "key": (self.key_size,)}.items():
            if name not in tensors or tensors[name].shape[1:] != shape:
                found = list(tensors[name].shape) if name in tensors else "missing"
                raise InputError(
                    f"{path}: {name} is {found}, expected [rows, {', '.join(map(str, shape))}]; make the MEMORY again"
                )
        return tensors

    def _read_row_ids(self, shard: int) -> Ids:
        return read_table(self._path(shard, RECORDS), ["row_id"])["row_id"].to_numpy()
