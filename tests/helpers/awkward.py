"""Corpora of two documents in the shapes in which tools write them."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

ROWS: list[dict[str, Any]] = [
    {"id": "4101", "title": "Arlen", "text": "The granary of Brännö is kept by Mirel Tove."},
    {"id": "4102", "title": "Jorvik", "text": 'The "granary" of Jorvik, which is red, is kept by Ona Brisk.'},
]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
WHOLE = {"data": ROWS, "total": 2, "next": None}
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def table(delimiter: str, end: str = "\n") -> str:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in f'"{delimiter}\n') else cell

    rows = [list(ROWS[0]), *([quoted(row[name]) for name in row] for row in ROWS)]
    return "".join(delimiter.join(row) + end for row in rows)


def long_window(data: bytes) -> bytes:
    """As `zstd --long=31` packs a stream of unknown length."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, write_content_size=False)
    packing = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packing.compress(data) + packing.flush()


def parquet(arrays: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer, **options)
    return buffer.getvalue()


def string_columns(kind: pa.DataType) -> dict[str, Any]:
    return {name: pa.array([row[name] for row in ROWS]).cast(kind) for name in ROWS[0]}


JSON: dict[str, str] = {
    "lines": "\n".join(LINES) + "\n",
    "windows": "\ufeff" + "\r\n".join(LINES) + "\r\n",
    "old-mac": "\r".join(LINES),
    "list": json.dumps(ROWS),
    "printed-list": "\ufeff" + json.dumps(ROWS, indent=2),
    "wrapped": json.dumps(WHOLE),
    "printed-wrapped": json.dumps(WHOLE, indent=2),
    "wrapped-twice": json.dumps({"status": {"codes": [{"code": 0}]}, "response": {"docs": ROWS}}),
    "by-columns": json.dumps(COLUMNS),
    "of-pandas": json.dumps({name: dict(enumerate(cells)) for name, cells in COLUMNS.items()}),
    "split": json.dumps({"columns": list(ROWS[0]), "index": [0, 1], "data": [list(row.values()) for row in ROWS]}),
    "by-index": json.dumps({str(number): row for number, row in enumerate(ROWS)}),
    "one-after-another": "".join(LINES),
    "printed-one-after-another": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "with-commas": ",\n".join(LINES),
    "sequence": "".join("\x1e" + line + "\n" for line in LINES),
    "blank-lines": "\n\n" + "\n \n".join(LINES) + "\n\n",
}
"""Shapes of JSON, each the same two documents."""

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "utf-16": lambda text: text.lstrip("\ufeff").encode("utf-16"),
    "utf-16-be-without-mark": lambda text: text.lstrip("\ufeff").encode("utf-16-be"),
    "utf-32": lambda text: text.lstrip("\ufeff").encode("utf-32"),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": long_window,
    "-unpacked.gz": bytes,  # a browser unpacks, and keeps the name
}
PARQUET: dict[str, bytes] = {
    "strings": parquet(string_columns(pa.string())),
    "large": parquet(string_columns(pa.large_string())),
    "bytes": parquet(string_columns(pa.string()) | {"text": pa.array([row["text"].encode() for row in ROWS])}),
    "categories": parquet({name: pa.array(cells).dictionary_encode() for name, cells in COLUMNS.items()}),
    "floats": parquet(COLUMNS | {"id": [4101.0, 4102.0]}),
    "integers": parquet(COLUMNS | {"id": pa.array([4101, 4102], pa.uint64())}),
    "decimals": parquet(COLUMNS | {"id": pa.array([4101, 4102]).cast(pa.decimal128(30, 2))}),
    "nested": parquet(COLUMNS | {"meta": [{"pages": [1]}, {"pages": []}]}, row_group_size=1),
}
