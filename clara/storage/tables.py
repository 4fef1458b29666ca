"""Parquet tables of artefacts: records in, records out, and errors that name the file."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clara.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or some of its columns.

    Raises:
        InputError: missing, damaged, or without one of the columns.
    """
    try:
        table = pq.read_table(path, columns=None if columns is None else list(columns))
        table.validate(full=True)  # a flipped byte may pass the decoder and leave a string that is none
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not readable as Parquet ({error}); make the artefact again, or copy it again"
        ) from error
    return table


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a Parquet file by column, lists as tuples.

    Raises:
        InputError: see `read_table`.
    """
    return records(read_table(path))


def records(rows: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows by column, lists as tuples."""
    return [
        {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in rows.to_pylist()
    ]


def table_bytes(records: "Iterable[DataclassInstance]", schema: pa.Schema) -> bytes:
    """Frozen records of that schema as the bytes of a Parquet file, tuples as lists."""
    rows = [
        {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(record).items()}
        for record in records
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data
