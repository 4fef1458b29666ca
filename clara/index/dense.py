"""The dense part of an INDEX: a vector of an embedding model for title and text of each row, in float16."""

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.errors import InputError
from clara.index import parts
from clara.index.ivf_file import ids_of, read_mapped
from clara.index.rows import pieces_of
from clara.index.search import FILE as FAISS_FILE
from clara.memory.store import MemoryStore
from clara.storage import paths
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write, folder
from clara.storage.manifest import hash_of

if TYPE_CHECKING:
    from clara.index.dense_model import Encoder

NAME = "dense"
_FILE = "vectors.npy"


def make_dense(
    store: MemoryStore,
    directory: Path,
    encoder: "Encoder | None",
    older: Artefact | None,
    on_progress: Callable[[int], None],
    workers: "BlockWorkers | None" = None,
) -> dict[str, Any] | None:
    """Link or build the dense part in a folder where an INDEX is being made, see `clara.index.parts.make`.

    Args:
        store: the MEMORY.
        directory: gets the folder `dense` and work files.
        encoder: the model; None: the older INDEX's part is linked, or there is none.
        older: INDEX whose part is linked if it is of the same rows and model, or whose vectors of the same rows and
            model are taken over; None: none.
        on_progress: called with the number of rows whose vectors are there.
        workers: compute the blocks; None: this process does.

    Raises:
        InputError: the model cannot be loaded, or gives a vector that float16 cannot hold; or blocks of the workers are
            not where this process reads them.
    """
    wanted = {"row_ids": parts.rows_hash(store)}
    if encoder is None:
        return parts.make(directory, NAME, wanted, older, None)
    wanted["model"] = encoder.hash
    place = workers.place if workers is not None and workers.place else directory
    # Blocks are of rows in the order of the MEMORY's shards.
    blocks = paths.join(place, f"dense-{hash_of([store.hash, encoder.hash, encoder.block_rows])[:16]}")

    def build() -> dict[str, Any]:
        described = encoder.description()
        embedding = _Embedding(encoder, described, older)
        _compute(store, blocks, embedding, on_progress, workers)
        _join(store, blocks, embedding, directory / NAME)
        return described

    made = parts.make(directory, NAME, wanted, older, build)
    folder(blocks).remove(folder(blocks).files())
    return made


@dataclass(frozen=True)
class BlockWorkers:
    """Other processes that compute blocks of vectors.

    Attributes:
        write: has the blocks of these numbers written into a folder, each by `BlockWriter.write`.
        place: folder or URL that workers and this process share, for the blocks; empty: where the INDEX is made.
    """

    write: Callable[[str, Sequence[int]], None]
    place: str = ""


class BlockWriter:
    """Writes blocks of vectors: each is of `block_rows` rows in the order of `pieces_of`."""

    def __init__(self, store: MemoryStore, encoder: "Encoder", older: Artefact | None) -> None:
        """Read which rows the blocks hold; no vector is computed yet.

        Args:
            store: the MEMORY.
            encoder: the model.
            older: INDEX whose vectors of the same rows and model are taken over; None: none.

        Raises:
            InputError: the model cannot be loaded.
        """
        self._store, self._embedding = store, _Embedding(encoder, encoder.description(), older)
        self._pieces = list(pieces_of(store, encoder.block_rows))
        self._lock = threading.Lock()  # models and tokenizers are not for several threads

    def write(self, blocks: str, number: int) -> None:
        """Write one block, unless it is there.

        Args:
            blocks: folder or URL.
            number: of the block.

        Raises:
            InputError: a vector is not finite in float16.
        """
        with self._lock:
            if not folder(blocks).sizes([_name(number)]):
                _write_block(blocks, number, self._embedding.vectors(self._store, self._pieces[number]))


class _Embedding:
    """Computes vectors as they are stored, but for those that an older INDEX has."""

    def __init__(self, encoder: "Encoder", described: Mapping[str, Any], older: Artefact | None) -> None:
        self.encoder, self.size = encoder, int(described["size"])
        self._unit = described["similarity"] == "cosine"
        self._known: tuple[Ids, NDArray[np.float16]] = np.empty(0, np.int64), np.empty((0, self.size), np.float16)
        if older is not None and (older.manifest.get(NAME) or {}).get("model") == encoder.hash:
            # A row id is the hash of title and text, so that the vector is the same.
            self._known = np.sort(ids_of(read_mapped(older.file(FAISS_FILE)))), open_dense(older, encoder)
            self.check_size(older.name, self._known[1].shape)

    def vectors(self, store: MemoryStore, rows: Ids) -> NDArray[np.float16]:
        """Vectors `[n, E]` of rows.

        Raises:
            InputError: one is not finite in float16, or has another size than the model says.
        """
        known_ids, known = self._known
        out = np.empty((len(rows), self.size), np.float16)
        there = np.isin(rows, known_ids)
        out[there] = known[np.searchsorted(known_ids, rows[there])]
        if not there.all():
            out[~there] = self._computed(store, rows[~there])
        return out

    def check_size(self, where: str, shape: tuple[int, ...]) -> None:
        """Refuse stored vectors of another size.

        Raises:
            InputError: the model is another one under the same name.
        """
        if shape[1] != self.size:
            raise InputError(
                f"--dense-model {self.encoder.folder!r}: gives vectors of {self.size} numbers, those of {where} have "
                f"{shape[1]}; it is another model under the same name: give the one before, or build the INDEX in "
                "another --output without --parent"
            )

    def _computed(self, store: MemoryStore, rows: Ids) -> NDArray[np.float16]:
        vectors: NDArray[np.float32] = self.encoder.embed_rows(store, rows).float().cpu().numpy()
        if vectors.shape[1] != self.size:
            raise InputError(
                f"--dense-model {self.encoder.folder!r}: says that its vectors have {self.size} numbers, and gives "
                f"vectors of {vectors.shape[1]}; its files do not belong together: copy the folder again"
            )
        if self._unit:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms != 0)
        with np.errstate(over="ignore"):
            stored = vectors.astype(np.float16)
        if not (finite := np.isfinite(stored).all(axis=1)).all():
            row = rows[int(np.argmin(finite))]
            raise InputError(
                f"--dense-model {self.encoder.folder!r}: the vector of row {row} of {store.name} is not finite in "
                "float16; use another model"
            )
        return stored


def _name(number: int) -> str:
    return f"{number:06d}.npy"


def _write_block(blocks: str, number: int, vectors: NDArray[np.float16]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    atomic_write(paths.join(blocks, _name(number)), buffer.getvalue())


def _missing(blocks: str, number: int) -> list[int]:
    """Blocks that are not finished, of so many."""
    there = folder(blocks).sizes(map(_name, range(number)))
    return [n for n in range(number) if _name(n) not in there]


def _compute(
    store: MemoryStore,
    blocks: str,
    embedding: _Embedding,
    on_progress: Callable[[int], None],
    workers: BlockWorkers | None,
) -> None:
    """Write the blocks that are missing."""
    pieces = list(pieces_of(store, embedding.encoder.block_rows))
    missing = _missing(blocks, len(pieces))
    if missing and workers is not None:
        workers.write(blocks, missing)
        if lost := _missing(blocks, len(pieces)):
            raise InputError(
                f"{blocks}: {len(lost)} of {len(missing)} blocks of dense vectors that workers computed are not there; "
                "give an --output that this machine and the workers share, a folder or a URL"
            )
        missing = []
    for number, rows in enumerate(pieces):
        if number in missing:
            _write_block(blocks, number, embedding.vectors(store, rows))
        on_progress(len(rows))


def _join(store: MemoryStore, blocks: str, embedding: _Embedding, part: Path) -> None:
    """Write the vectors of all blocks into one file, in the order of the row ids."""
    part.mkdir(exist_ok=True)
    vectors = np.lib.format.open_memmap(part / _FILE, "w+", np.float16, (len(store), embedding.size))
    for number, rows in enumerate(pieces_of(store, embedding.encoder.block_rows)):
        block = np.load(io.BytesIO(folder(blocks).read(_name(number)) or b""), allow_pickle=False)
        embedding.check_size(paths.join(blocks, _name(number)), block.shape)
        vectors[np.searchsorted(store.row_ids, rows)] = block
    vectors.flush()


def open_dense(artefact: Artefact, encoder: "Encoder") -> NDArray[np.float16]:
    """The vectors `[rows, E]` of an INDEX's dense part in the order of `row_ids`, mapped.

    Raises:
        InputError: the INDEX has no dense part or one of another model, or it is damaged.
    """
    described = artefact.manifest.get(NAME)
    if not described:
        raise InputError(
            f"{artefact.name}: has no dense vectors; build the INDEX with --dense-model {encoder.folder}, or set "
            "joint.from_dense and the like to 0"
        )
    if described["model"] != encoder.hash:
        raise InputError(
            f"--dense-model {encoder.folder!r}: its hash is {encoder.hash[:16]}…, the dense vectors of {artefact.name} "
            f"are of model {described['model'][:16]}…; give that model (of an endpoint "
            "also its name, prompts and size), or build the INDEX with this one"
        )
    path = parts.fetch(artefact, NAME) / _FILE
    expected = (artefact.manifest["counts"]["rows"], described["size"])
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.shape != expected or vectors.dtype != np.float16:
            raise ValueError(f"{vectors.dtype} {list(vectors.shape)}, expected float16 {list(expected)}")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); build the INDEX again, or copy it again") from error
    found: NDArray[np.float16] = vectors
    return found
