"""A share of an INDEX for one owner of several: the rows whose `row_id` modulo the number of owners is the owner's.

Where the MEMORY's number of shards is a multiple of it, an owner reads the payload of whole shards and no other's. All
shares together find what the INDEX does, bit for bit: the trained part and the codes are the same, and a row's scores
don't depend on its neighbours.
"""

from typing import Any

import faiss
import numpy as np

from clara.errors import InputError
from clara.index.indexed_rows import IndexedRows
from clara.index.ivf_file import core_of, emptied, has_lists, ids_of, is_mapped, kind_of, read_mapped
from clara.index.keys import IndexKeys, score_of
from clara.index.search import FILE, KIND, open_index
from clara.memory.store import MemoryStore
from clara.storage.artefact import Artefact
from clara.storage.paths import Name

_ID_MODULO = 1  # FAISS's name for it, SUBSET_TYPE_ID_MOD, does not reach Python
_ADD_ROWS = 65_536


def open_share(source: Name | Artefact, store: MemoryStore, number: int, num_shares: int) -> IndexedRows:
    """The rows of owner `number` of `num_shares`, their codes copied into RAM, their payload mapped.

    Raises:
        InputError: the INDEX is unfinished, damaged, for another MEMORY, or of a kind that can't be shared out.
    """
    artefact = Artefact.open(source, KIND)
    keys = IndexKeys(store, score_of(artefact))
    open_index(artefact, store, keys.score)
    path = artefact.folder / FILE
    index = read_mapped(path)
    if has_lists(index):
        share: Any = emptied(read_mapped(path))
        faiss.extract_index_ivf(index).copy_subset_to(faiss.extract_index_ivf(share), _ID_MODULO, num_shares, number)
        share.ntotal = faiss.extract_index_ivf(share).ntotal
        return IndexedRows(keys, share)
    if reason := why_whole(index):
        raise InputError(f"{artefact.name}: {not_shared(reason)}")
    kind, ids = kind_of(index), ids_of(index)
    share = faiss.IndexIDMap(faiss.index_factory(keys.size, _plain(kind), faiss.METRIC_INNER_PRODUCT))
    own = np.flatnonzero(owner_of(ids, num_shares) == number)
    for begin in range(0, len(own), _ADD_ROWS):
        positions = own[begin : begin + _ADD_ROWS]
        share.add_with_ids(
            kind.reconstruct_batch(positions), ids[positions]
        )  # exact: float16 is encoded to the same again
    return IndexedRows(keys, share)


def why_whole(index: Any) -> str:
    """Why the rows of an index, or of an empty one of its kind, can't be shared out; empty where they can."""
    if has_lists(index):
        return ""
    kind = kind_of(index)
    core = core_of(kind)
    if _plain(kind):
        return ""
    if isinstance(core, faiss.IndexHNSW):
        return f"its rows are linked to each other ({type(core).__name__})"
    if not is_mapped(index):
        return f"its codes are stored in blocks of many rows each ({type(core).__name__})"
    return f"only plain keys and plain inverted lists are taken apart row by row, and this is {type(kind).__name__}"


def _plain(kind: Any) -> str:
    """Factory string of an index of plain keys, in float32 or float16; empty if it is of another kind."""
    if isinstance(kind, faiss.IndexFlat):
        return "Flat"
    half = isinstance(kind, faiss.IndexScalarQuantizer) and kind.sq.qtype == faiss.ScalarQuantizer.QT_fp16
    return "SQfp16" if half else ""


def not_shared(reason: str) -> str:
    """The message about a kind of index that search servers can't hold."""
    return (
        f"an index of this kind can't be shared out among search servers: {reason}; "
        "build one that is Flat or has plain inverted lists (IVF…), or set retrieval.search_shards=0"
    )


def owner_of(rows: Any, num_shares: int) -> Any:
    """Which owner holds each row."""
    return np.asarray(rows, np.int64) % num_shares
