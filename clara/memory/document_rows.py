"""Which rows a document has, and which document a row, without a Python object for each row of a corpus."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import methodcaller
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara.memory.live_rows import LiveRows
from clara.storage.tables import read_table

_TEXT = methodcaller("as_py")


class DocumentRows:
    """Document ids of the live rows of a MEMORY, sorted as Arrow holds them: a document is found by halving."""

    def __init__(self, records: Sequence[Path], live: LiveRows) -> None:
        """Read and sort them.

        Args:
            records: the table of each shard.
            live: which of their rows are live.

        Raises:
            InputError: a table is missing or damaged.
        """
        columns = [read_table(path, ["document_id"])["document_id"] for path in records]
        begins = np.cumsum([0, *map(len, columns)])[:-1]
        # Strings of more than 2 GiB in all have no room in Arrow's plain kind.
        stored = pa.chunked_array(
            [chunk.cast(pa.large_string()) for column in columns for chunk in column.chunks], pa.large_string()
        )
        documents = stored.combine_chunks().take(pa.array(begins[live.shard_of] + live.position_of))
        order = pc.sort_indices(documents)
        self._sorted, self._order, self._row_ids = documents.take(order), order.to_numpy(), live.row_ids

    def of_rows(self) -> list[str]:
        """The document of each row, in the order of the row ids."""
        documents: list[str] = self._sorted.take(pa.array(np.argsort(self._order))).to_pylist()
        return documents

    def rows_of(self, document_id: str) -> list[int]:
        """Row ids of a document, ascending; empty where it has none."""
        begin = bisect_left(self._sorted, document_id, key=_TEXT)
        end = bisect_right(self._sorted, document_id, lo=begin, key=_TEXT)
        rows: list[int] = np.sort(self._row_ids[self._order[begin:end]]).tolist()
        return rows
