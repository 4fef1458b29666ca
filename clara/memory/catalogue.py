"""The documents of a MEMORY as a list that is paged and searched by id and title."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara.memory.shards import RECORDS
from clara.memory.store import MemoryStore
from clara.storage.tables import read_table

_SCHEMA = pa.schema([("document_id", pa.large_string()), ("title", pa.large_string())])


@dataclass(frozen=True)
class Listed:
    """A document, its title (the first in the alphabet where its chunks have several), and how many live chunks."""

    document_id: str
    title: str
    num_chunks: int


class Catalogue:
    """Documents that have live rows, by id. Arrow holds id and title of each in RAM."""

    def __init__(self, store: MemoryStore) -> None:
        """Read the records of every shard.

        Raises:
            InputError: a file is missing or damaged.
        """
        paths = [store.artefact.file(f"{name}/{RECORDS}") for name in store.shard_names]
        tables = [read_table(path, _SCHEMA.names).cast(_SCHEMA) for path in paths]
        begins = np.cumsum([0, *map(len, tables)])[:-1]
        rows = pa.concat_tables([_SCHEMA.empty_table(), *tables])
        live = rows.take(pa.array(begins[store.live.shard_of] + store.live.position_of))
        grouped = live.group_by("document_id").aggregate([("title", "min"), ([], "count_all")])
        columns = ["document_id", "title_min", "count_all"]
        self._documents = grouped.select(columns).rename_columns(["document_id", "title", "num_chunks"])
        self._documents = self._documents.sort_by("document_id")

    def __len__(self) -> int:
        return len(self._documents)

    def find(self, text: str, offset: int, limit: int) -> tuple[int, list[Listed]]:
        """Documents whose id or title holds a text in upper or lower case, by id.

        Args:
            text: empty: all of them.
            offset: how many are passed over.
            limit: how many are returned at most.

        Returns:
            How many there are, and those.
        """
        found = self._documents
        if text:
            within = [pc.match_substring(found[name], text, ignore_case=True) for name in _SCHEMA.names]
            found = found.filter(pc.or_(*within))
        return len(found), [Listed(**row) for row in found.slice(offset, limit).to_pylist()]
