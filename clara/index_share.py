"""A share of an INDEX for one owner of several: the rows whose `row_id` modulo the number of owners is the owner's.

Where the MEMORY's number of shards is a multiple of it, an owner reads whole shards and no other's. All shares together find what the INDEX does,
bit for bit: the trained part is the same, and a row's scores don't depend on its neighbours.
"""

import os
from typing import Any

import faiss
import numpy as np

from clara.errors import InputError
from clara.index import IndexedRows, index_file
from clara.inverted_lists import emptied, has_lists, read_mapped
from clara.memory import MemoryStore

_ID_MODULO = 1  # FAISS's name for it, SUBSET_TYPE_ID_MOD, does not reach Python
_ADD_ROWS = 65_536


def open_share(index_dir: str | os.PathLike[str], store: MemoryStore, number: int, num_shares: int) -> IndexedRows:
    """The rows of owner `number` of `num_shares`, their codes copied into RAM, their payload mapped.

    Raises:
        InputError: the INDEX is unfinished, damaged, for another MEMORY, or of a kind that can't be shared out.
    """
    path = index_file(index_dir, store)
    index = read_mapped(path)
    if has_lists(index):
        share: Any = emptied(read_mapped(path))
        faiss.extract_index_ivf(index).copy_subset_to(faiss.extract_index_ivf(share), _ID_MODULO, num_shares, number)
        share.ntotal = faiss.extract_index_ivf(share).ntotal
        return IndexedRows(store, share)
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    if type(inner) is not faiss.IndexFlatIP:
        raise InputError(
            f"{index_dir}: an index of kind {type(inner).__name__} can't be shared out among search servers, as its rows are linked to each other; build "
            "one that is Flat or has plain inverted lists (IVF…), or set retrieval.search_shards=0"
        )
    share = faiss.IndexIDMap(faiss.IndexFlatIP(store.key_size))
    own = store.row_ids[store.row_ids % num_shares == number]
    for begin in range(0, len(own), _ADD_ROWS):
        rows = own[begin : begin + _ADD_ROWS]
        share.add_with_ids(store.keys(rows), rows)
    return IndexedRows(store, share)


def owner_of(rows: Any, num_shares: int) -> Any:
    """Which owner holds each row."""
    return np.asarray(rows, np.int64) % num_shares
