"""The dense part of an INDEX: a vector of an embedding model for title and text of each row, in float16."""

import io
from collections.abc import Callable, Mapping
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
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write

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
) -> dict[str, Any] | None:
    """Link or build the dense part in a folder where an INDEX is being made, see `clara.index.parts.make`.

    Args:
        store: the MEMORY.
        directory: gets the folder `dense` and work files.
        encoder: the model; None: the older INDEX's part is linked, or there is none.
        older: INDEX whose part is linked if it is of the same rows and model, or whose vectors of the same rows and
            model are taken over; None: none.
        on_progress: called with the number of rows whose vectors are there.

    Raises:
        InputError: the model cannot be loaded, or gives a vector that float16 cannot hold.
    """
    wanted = {"row_ids": parts.rows_hash(store)}
    if encoder is None:
        return parts.make(directory, NAME, wanted, older, None)
    wanted["model"] = encoder.hash

    def build() -> dict[str, Any]:
        described = encoder.description()
        _build(store, directory, _Embedding(encoder, described, older), on_progress)
        return described

    return parts.make(directory, NAME, wanted, older, build)


class _Embedding:
    """Computes vectors as they are stored, but for those that an older INDEX has."""

    def __init__(self, encoder: "Encoder", described: Mapping[str, Any], older: Artefact | None) -> None:
        self.encoder, self.size = encoder, int(described["size"])
        self._unit = described["similarity"] == "cosine"
        self._known: tuple[Ids, NDArray[np.float16]] = np.empty(0, np.int64), np.empty((0, self.size), np.float16)
        if older is not None and (older.manifest.get(NAME) or {}).get("model") == encoder.hash:
            # A row id is the hash of title and text, so that the vector is the same.
            self._known = np.sort(ids_of(read_mapped(older.file(FAISS_FILE)))), open_dense(older, encoder)
            self._check_size(older.name, self._known[1].shape)

    def vectors(self, store: MemoryStore, rows: Ids) -> NDArray[np.float16]:
        """Vectors `[n, E]` of rows.

        Raises:
            InputError: one is not finite in float16.
        """
        known_ids, known = self._known
        out = np.empty((len(rows), self.size), np.float16)
        there = np.isin(rows, known_ids)
        out[there] = known[np.searchsorted(known_ids, rows[there])]
        if not there.all():
            out[~there] = self._computed(store, rows[~there])
        return out

    def block(self, path: Path) -> NDArray[np.float16]:
        """The vectors `[n, E]` of a finished block.

        Raises:
            InputError: they are of another size, so that the model is another one under the same name.
        """
        vectors: NDArray[np.float16] = np.load(path)
        self._check_size(str(path), vectors.shape)
        return vectors

    def _check_size(self, where: str, shape: tuple[int, ...]) -> None:
        if shape[1] != self.size:
            raise InputError(
                f"--dense-model {self.encoder.folder!r}: gives vectors of {self.size} numbers, those of {where} have "
                f"{shape[1]}; it is another model under the same name: give the one before, or build the INDEX in "
                "another --output without --parent"
            )

    def _computed(self, store: MemoryStore, rows: Ids) -> NDArray[np.float16]:
        vectors: NDArray[np.float32] = self.encoder.embed_rows(store, rows).float().cpu().numpy()
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


def _build(store: MemoryStore, directory: Path, embedding: _Embedding, on_progress: Callable[[int], None]) -> None:
    blocks, block_rows = directory / f"dense-{embedding.encoder.hash[:16]}", embedding.encoder.block_rows
    for number, rows in enumerate(pieces_of(store, block_rows)):
        path = blocks / f"{number:06d}.npy"
        if not path.is_file():
            buffer = io.BytesIO()
            np.save(buffer, embedding.vectors(store, rows))
            atomic_write(path, buffer.getvalue())
        on_progress(len(rows))
    (directory / NAME).mkdir(exist_ok=True)
    shape = (len(store), embedding.size)
    vectors = np.lib.format.open_memmap(directory / NAME / _FILE, "w+", np.float16, shape)
    for number, rows in enumerate(pieces_of(store, block_rows)):
        vectors[np.searchsorted(store.row_ids, rows)] = embedding.block(blocks / f"{number:06d}.npy")
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
