"""Documents that MEMORY does not hold because others represent them: exact copies of chunks, and near duplicates.

`copies.parquet` has a line for each chunk that was dropped, with the row of the equal chunk (`row_id`), and a line for
each document that was dropped as a near duplicate, with the document that it is similar to (`like`).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from operator import methodcaller
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COPIES = "copies.parquet"
_SCHEMA = pa.schema([("document_id", pa.string()), ("row_id", pa.int64()), ("like", pa.string())])
_TEXT = methodcaller("as_py")

Copy = tuple[str, int | None, str | None]
"""Document, and the row that is equal to a chunk of it or else the document that it is similar to."""


def has_copies(manifest: Mapping[str, Any]) -> bool:
    """Whether a MEMORY lists copies."""
    return any(entry["path"] == COPIES for entry in manifest["files"])


def copies_bytes(copies: Iterable[Copy]) -> tuple[bytes, int]:
    """Copies, each once, as the bytes of a file, and how many there are; the same for any order."""
    rows = sorted(set(copies), key=lambda copy: (copy[0], -1 if copy[1] is None else copy[1], copy[2] or ""))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([dict(zip(_SCHEMA.names, row, strict=True)) for row in rows], _SCHEMA), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data, len(rows)


class Sorted:
    """Values by text, found by halving; Arrow holds both, so that there is no Python object for each."""

    def __init__(self, names: pa.Array, values: pa.Array) -> None:
        order = pc.sort_indices(names)
        self._names, self._values = names.take(order), values.take(order)

    def of(self, name: str) -> list[Any]:
        """The values listed for a text; none if it is not listed."""
        begin = bisect_left(self._names, name, key=_TEXT)
        end = bisect_right(self._names, name, lo=begin, key=_TEXT)
        found: list[Any] = self._values[begin:end].to_pylist()
        return found
