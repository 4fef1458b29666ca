"""Damaged files: a mutator of bytes, and how many records are in a file, counted by other means than the readers'."""

import copy
import csv
import io
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    4101.0,
    1.5,
    float("nan"),
    "",
    " ",
    "\x00",
    "\ud800",
    "Ada",
    "d1",
    "a\nb",
    "[1]",
    "{}",
    "['a' 'b']",
    "True",
    "2024-02-30",
    [],
    {},
    [None],
    [[]],
    [1, "a"],
    {"text": ["a"]},
    {"text": "a", "title": None},
    [["Arlen", 0]],
    {"title": ["Arlen"], "sentences": [["a"], ["b"]]},
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


def with_other_values(data: bytes, rng: random.Random) -> bytes | None:
    """The bytes with one to three values of their JSON replaced, renamed or removed; None if they are no JSON."""
    rows = [line for line in data.decode("utf-8", "replace").split("\n") if line.strip()]
    try:
        values = [json.loads(row) for row in rows]
    except ValueError:
        rows = []
        try:
            values = [json.loads(data)]
        except ValueError:
            return None
    for _ in range(rng.randint(1, 3)):
        places = [place for value in values for place in _places(value)]
        if places:
            _change(*rng.choice(places), rng)
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each object or list inside a value, with each key or index of it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    what = rng.randrange(5)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice((f"{key}s", key.title(), "id", "text", "title", "answers", "context"))] = holder.pop(key)
    elif what == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif what == 3:
        holder[key] = json.dumps(holder[key]) if rng.random() < 0.5 else str(holder[key])
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))


@dataclass
class Fuzzed:
    """What a fuzz of one file has done: mutated files, how many of them were read, and seconds of processor time."""

    files: int = 0
    read: int = 0
    seconds: float = 0.0


def fuzz(name: str, data: bytes, check: Callable[[bytes], bool], count: int, until: float = math.inf) -> Fuzzed:
    """Check mutated files, the same ones in every run: with other bytes, or, of JSON, as often with other values.

    Args:
        name: of the file; part of the seed.
        data: the file as it is right.
        check: raises where something is wrong; returns whether the file is read, and not refused.
        count: number of mutated files.
        until: time of `time.monotonic` at which to stop before.

    Raises:
        AssertionError: a check failed; its message holds the mutated file.
    """
    rng, found, begin = random.Random(f"{SEED}:{name}"), Fuzzed(), time.process_time()
    while found.files < count and time.monotonic() < until:
        changed = with_other_values(data, rng) if rng.random() < 0.5 else None
        changed = mutated(data, rng) if changed is None else changed
        try:
            found.read += check(changed)
        except BaseException as error:
            raise AssertionError(f"mutation {found.files} of {name}: {changed!r}") from error
        found.files += 1
    found.seconds = time.process_time() - begin
    return found


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


def has_name_twice(data: bytes) -> bool:
    """Whether an object of some JSON has a name twice, which spoils the record that it is in."""
    found: list[bool] = []
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: found.append(len(dict(pairs)) < len(pairs)))
    try:
        decoder.decode(data.decode("utf-8-sig").strip())
    except (ValueError, RecursionError):
        return False
    return any(found)


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
        return len(lists[0]) if len(lists) == 1 and not isinstance(found[0].get(key), str) else 1
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
    if not lines or has_name_twice(data):
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
