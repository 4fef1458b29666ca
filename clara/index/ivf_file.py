"""Inverted lists on disk: one FAISS file made of many, list by list, in memory that a single list fills.

FAISS writes an IVF index's lists at the end of its file: the mark `ilar`, number of lists and bytes of a code, the
lists' sizes, then for each list its codes and its ids. That end is written here as a stream, so that any FAISS reads
the file, and maps it with `IO_FLAG_MMAP`. Each list ascends by id, so that the bytes don't depend on how the rows were
cut into parts.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.errors import InputError

_EMPTY_LISTS_BYTES = 32  # what FAISS writes for lists that are all empty
_ID_BYTES = 8
_NUMBERED = (
    b"IxMp",
    b"IxM2",
)  # how a file of rows numbered in the order of their ids begins: another flag of FAISS's maps it


def kind_of(index: Any) -> Any:
    """What rows that are numbered in the order of their ids are held by; else the index itself."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index


def core_of(kind: Any) -> Any:
    """What holds the rows behind a transform of theirs, or without one."""
    return faiss.downcast_index(kind.index) if isinstance(kind, faiss.IndexPreTransform) else kind


def has_lists(index: Any) -> bool:
    """Whether all rows are in plain inverted lists: IVF with flat, scalar or product-quantised codes."""
    core = core_of(index)
    if not isinstance(core, faiss.IndexIVF) or isinstance(core, faiss.IndexIVFPQR):
        return False
    return isinstance(_lists(core), faiss.ArrayInvertedLists | faiss.OnDiskInvertedLists)


def _lists(inverted: Any) -> Any:
    return faiss.downcast_InvertedLists(inverted.invlists)


def read_mapped(path: str | os.PathLike[str]) -> Any:
    """Open a FAISS file; lists, codes and graphs are memory-mapped and shared by processes, except see `is_mapped`.

    Raises:
        InputError: not an index.
    """
    try:
        with open(path, "rb") as stream:
            numbered = stream.read(4) in _NUMBERED
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if numbered else faiss.IO_FLAG_MMAP)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not readable as a FAISS index ({error}); build the index again") from error
    if has_lists(index):
        # FAISS's threads that touch each list ahead cost more than they gain once the pages are there.
        _lists(faiss.extract_index_ivf(index)).prefetch_nthread = 0
    return index


def is_mapped(index: Any) -> bool:
    """True if FAISS can memory-map this kind of index; it copies fast-scan codes instead."""
    return not isinstance(core_of(kind_of(index)), faiss.IndexFastScan | faiss.IndexIVFFastScan)


def emptied(index: Any) -> Any:
    """Remove all rows from a trained index with lists and return it; the file it is mapped from is unchanged."""
    inverted = faiss.extract_index_ivf(index)
    index.ntotal = inverted.ntotal = 0
    lists: Any = faiss.ArrayInvertedLists(inverted.nlist, inverted.code_size)
    inverted.replace_invlists(lists, True)
    lists.this.disown()
    return index


def list_of(inverted: Any, number: int) -> tuple[Ids, NDArray[np.uint8]]:
    """Ids `[n]` and codes `[n, bytes]` of one list of an IVF index; views that live as long as it does."""
    lists, size = inverted.invlists, inverted.invlists.list_size(number)
    if not size:
        return np.empty(0, np.int64), np.empty((0, inverted.code_size), np.uint8)
    ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * inverted.code_size)
    return ids, codes.reshape(size, inverted.code_size)


def ids_of(index: Any) -> Ids:
    """Ids of all rows of an index, in no order.

    Raises:
        InputError: an index that holds none.
    """
    if isinstance(index, faiss.IndexIDMap):
        found: Ids = faiss.vector_to_array(index.id_map)
        return found
    if not has_lists(index):
        raise InputError(f"an index of kind {type(index).__name__} holds no row ids; build the index again")
    inverted = faiss.extract_index_ivf(index)
    return np.concatenate([list_of(inverted, number)[0] for number in range(inverted.nlist)])


@dataclass(frozen=True)
class Source:
    """Rows to merge: an index with lists, trained like the others, and which of its ids, ascending (None: all)."""

    index: Any
    taken: Ids | None = None

    def rows(self, number: int) -> tuple[Ids, NDArray[np.uint8]]:
        """Ids and codes of one list."""
        ids, codes = list_of(faiss.extract_index_ivf(self.index), number)
        if self.taken is None:
            return ids, codes
        if not len(self.taken):
            return ids[:0], codes[:0]
        position = np.minimum(np.searchsorted(self.taken, ids), len(self.taken) - 1)
        mask = self.taken[position] == ids
        return ids[mask], codes[mask]


def merge(
    trained: Any,
    sources: Sequence[Source],
    path: str | os.PathLike[str],
    on_progress: Callable[[int], None] = lambda lists: None,
) -> int:
    """Write an index of all rows of the sources, whole or not at all; returns the number of rows.

    Args:
        trained: the empty index that every source was added to.
        sources: no id occurs twice, in one or in several.
        path: of the FAISS file.
        on_progress: called with the number of written lists after each list.
    """
    path, inverted = Path(path), faiss.extract_index_ivf(trained)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    sizes = np.zeros(inverted.nlist, np.uint64)
    with open(partial, "wb") as stream:
        head = _head(trained, 0)
        stream.write(head + _lists_head(inverted, sizes))
        for number in range(inverted.nlist):
            ids, codes = (
                np.concatenate(part) for part in zip(*(source.rows(number) for source in sources), strict=True)
            )
            order = np.argsort(ids, kind="stable")
            stream.write(codes[order].tobytes())
            stream.write(ids[order].tobytes())
            sizes[number] = len(ids)
            on_progress(number + 1)
        rows = int(sizes.sum())
        stream.seek(0)
        stream.write(_head(trained, rows) + _lists_head(inverted, sizes))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    return rows


def _head(trained: Any, rows: int) -> bytes:
    """A FAISS file of that many rows up to its lists."""
    inverted = faiss.extract_index_ivf(trained)
    trained.ntotal = inverted.ntotal = rows
    try:
        whole: bytes = faiss.serialize_index(trained).tobytes()
    finally:
        trained.ntotal = inverted.ntotal = 0
    if whole[-_EMPTY_LISTS_BYTES:][:4] != b"ilar":
        raise RuntimeError(f"FAISS {faiss.__version__} writes inverted lists in another way than this program knows")
    return whole[:-_EMPTY_LISTS_BYTES]


def _lists_head(inverted: Any, sizes: NDArray[np.uint64]) -> bytes:
    numbers = np.array([inverted.nlist, inverted.code_size], np.uint64).tobytes()
    return b"ilar" + numbers + b"full" + np.uint64(len(sizes)).tobytes() + sizes.tobytes()


def bytes_of_row(index: Any) -> int:
    """Bytes that a row takes in the lists of an index."""
    return int(faiss.extract_index_ivf(index).code_size) + _ID_BYTES
