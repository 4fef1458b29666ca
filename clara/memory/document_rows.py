"""Which rows a document has, and which document a row, without a Python object for each row of a corpus."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara.memory.copies import Sorted
from clara.memory.live_rows import LiveRows
from clara.storage.tables import read_table


class DocumentRows:
    """Document ids of the live rows of a MEMORY, sorted as Arrow holds them: a document is found by halving.

    Of another column of text the same: `column="source"` finds the rows of a source.
    """

    def __init__(
        self, records: Sequence[Path], live: LiveRows, copies: Path | None = None, column: str = "document_id"
    ) -> None:
        """Read the document ids of all live rows, and sort them.

        Args:
            records: the table of each shard.
            live: which of their rows are live.
            copies: see `clara.memory.copies`; None: there are none.
            column: of the tables.

        Raises:
            InputError: a table is missing or damaged.
        """
        columns = [read_table(path, [column])[column] for path in records]
        begins = np.cumsum([0, *map(len, columns)])[:-1]
        # Strings of more than 2 GiB in all have no room in Arrow's plain kind.
        stored = pa.chunked_array(
            [chunk.cast(pa.large_string()) for values in columns for chunk in values.chunks], pa.large_string()
        )
        self._documents = stored.combine_chunks().take(pa.array(begins[live.shard_of] + live.position_of))
        names, rows, self._like = self._documents, pa.array(live.row_ids), None
        if copies is not None:
            table = read_table(copies)
            near = table.filter(pc.is_valid(table["like"]))
            self._like = Sorted(_large(near["document_id"]), _large(near["like"]))
            exact = table.filter(pc.is_in(table["row_id"], value_set=rows, skip_nulls=True))
            names = pa.concat_arrays([names, _large(exact["document_id"])])
            rows = pa.concat_arrays([rows, exact["row_id"].combine_chunks()])
        self._rows = Sorted(names, rows)

    def of_rows(self) -> list[str]:
        """The document of each row, in the order of the row ids."""
        documents: list[str] = self._documents.to_pylist()
        return documents

    def rows_of(self, document_id: str) -> list[int]:
        """Row ids of a document, ascending; empty where it has none.

        Of a chunk that was dropped as a copy, the row that is equal to it; of a document that was dropped as a near
        duplicate, the rows of the document that it is similar to.
        """
        rows: set[int] = set()
        names, seen = [document_id], set[str]()
        while names:
            name = names.pop()
            if name not in seen:
                seen.add(name)
                rows.update(self._rows.of(name))
                names += self._like.of(name) if self._like else []
        return sorted(rows)


def _large(column: pa.ChunkedArray) -> pa.Array:
    return column.cast(pa.large_string()).combine_chunks()
