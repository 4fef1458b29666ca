"""Damaged files: a mutator of bytes, and how many records are in a file, counted by other means than the readers'."""

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SEED = 17
TOKENS = [
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\t",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"NaN",
]
MARK, SPACES = b"\xef\xbb\xbf", b" \t\r\n\v\f\x1e"
BETWEEN = " \t\r\n,\ufeff\x1e"
_LENIENT = json.JSONDecoder(strict=False)  # tabs and form feeds inside strings


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes."""
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        end = min(end, at + rng.choice((1, 2, 8, 64)))
        part = rng.choice(
            (
                bytes([rng.randrange(256)]),
                b"",
                data[at:end] * 2,
                rng.choice(TOKENS),
                data[at:end] + rng.choice(TOKENS),
                bytes(byte ^ (1 << rng.randrange(8)) for byte in data[at : at + 1]),
            )
        )
        data = data[:at] + part + data[end:]
        if rng.random() < 0.05:
            data = data[: rng.randint(0, len(data))]
    return data


def lines_of(data: bytes) -> int:
    """Number of lines that are not blank."""
    return sum(1 for line in data.split(b"\n") if line.strip(SPACES) not in (b"", MARK))


def values_of(data: bytes) -> list[Any] | None:
    """The values of JSON one after another; None if there is something else."""
    found: list[Any] = []
    try:
        text, at = data.decode("utf-8-sig"), 0
        while (at := len(text) - len(text[at:].lstrip(BETWEEN))) < len(text):
            value, at = _LENIENT.raw_decode(text, at)
            found.append(value)
    except (ValueError, RecursionError):
        return None
    return found


def objects_in_lines(data: bytes) -> int:
    """Number of records of JSON Lines: objects one after another or in a list on a line, else the line."""
    count = 0
    for line in data.split(b"\n"):
        if line.strip(SPACES) not in (b"", MARK):
            values = values_of(line) or [None]
            rows = values[0] if len(values) == 1 and isinstance(values[0], list) else values
            count += len(rows) if rows and all(isinstance(row, dict) for row in rows) else 1
    return count


def rows_in_values(data: bytes, key: str) -> int | None:
    """Number of records in one JSON value, or in several one after another; None if it is neither."""
    found = values_of(data)
    if found is None:
        return None
    if len(found) == 1 and isinstance(found[0], dict):
        lists = [v for v in found[0].values() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)]
        return len(lists[0]) if len(lists) == 1 and key not in found[0] else 1
    return sum(len(value) if isinstance(value, list) else 1 for value in found)


def json_counts(data: bytes, key: str, *, lines: bool) -> set[int]:
    """The numbers of records that a file of JSON may have: where shapes are mixed, there are two views of it.

    Args:
        data: the file.
        key: a field of every row.
        lines: whether its name is that of JSON Lines.
    """
    counts = {objects_in_lines(data)}
    first = next((line for line in data.split(b"\n") if line.strip(SPACES) not in (b"", MARK)), b"")
    if (values := rows_in_values(data, key)) is not None:
        counts.add(values)
    if not lines:
        counts.add(1)
    try:
        json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        counts |= set(range(1, lines_of(data) + data.count(b"{") + 1))  # read whole, from one value to the next
    return counts


def table_counts(data: bytes, delimiters: str, keys: Sequence[str]) -> set[int]:
    """The numbers of rows that a table may have; one of `keys` is in its first line."""
    if b"\r" in data.replace(b"\r\n", b"\n"):  # a line end of old Macs, or a character of a text
        return set(range(lines_of(data.replace(b"\r", b"\n")) + 1))
    for delimiter in delimiters:
        try:
            lines = io.StringIO(data.decode("utf-8-sig"), newline="")
            rows = [row for row in csv.reader(lines, delimiter=delimiter, strict=True) if any(map(str.strip, row))]
            rows = [row for row in rows if row != ["\ufeff"]]
        except (csv.Error, ValueError):
            return set(range(lines_of(data) + 1))
        if rows and not set(keys).isdisjoint(map(str.strip, rows[0])):
            return {len(rows) - 1}
    return {lines_of(data)}


def parquet_counts(path: Path, columns: Sequence[str]) -> set[int]:
    """The numbers of rows that a Parquet file may have."""
    try:
        return {len(pq.read_table(path, columns=list(columns)))}
    except (OSError, pa.ArrowException, ValueError):
        return set(range(10))
