"""Records spilled to disk by partition, so that a corpus bypasses the runner's memory: a shuffle in files.

A writer produces files of bounded size: a table with the offset of every partition, then the bytes of the partitions.
A reader reads a range of partitions of all files, with two small reads per file. Files are written atomically.

If the number of shards is not known when records are spilled, partitions are ordered by the reversed last bits of the
row id. The rows of one of 2^k shards are then adjacent in every file, for any k.
"""

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from clara.errors import InputError
from clara.storage.folders import atomic_write
from clara.storage.manifest import hash_of, make_directory, versions

SPILL = ".spill"
PLAN = "plan.json"
_FORMAT = 5
_NUM_BITS = 12
NUM_PARTITIONS = 1 << _NUM_BITS
"""Partitions where the number of shards is not known beforehand."""
_FILE_BYTES = 16 * 2**20
_TABLE = np.dtype("<i8")


def _reversed_bits(value: int) -> int:
    return int(f"{value:0{_NUM_BITS}b}"[::-1], 2)


def partition_of(number: int, num_shards: int) -> int:
    """Partition of a row id or a hash: its shard's own where their number is given; 0: one of `NUM_PARTITIONS`."""
    return number % num_shards if num_shards else _reversed_bits(number % NUM_PARTITIONS)


def partitions_of_shard(shard: int, num_shards: int) -> tuple[int, int]:
    """Range of partitions [first, last) that hold a shard's numbers (n % num_shards = shard) and perhaps others.

    Only for records that were spilled without a number of shards; that number must be a power of two.
    """
    if num_shards & (num_shards - 1):
        raise ValueError(f"{num_shards} shards: not a power of two")
    first = _reversed_bits(shard % NUM_PARTITIONS)
    return first, first + max(1, NUM_PARTITIONS // num_shards)


class SpillWriter:
    """Collects records by partition; writes `STEM-00000.KIND` and so on at `file_bytes`, or on request."""

    def __init__(self, stem: Path, kind: str, num_partitions: int, file_bytes: int | None = _FILE_BYTES) -> None:
        self._stem, self._kind, self._num_partitions, self._file_bytes = stem, kind, num_partitions, file_bytes
        self._records: dict[int, list[bytes]] = {}
        self._num_bytes = 0
        self.num_files = 0
        for number in itertools.count():  # files of an interrupted attempt
            try:
                self._path(number).unlink()
            except FileNotFoundError:
                break

    def _path(self, number: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{number:05d}.{self._kind}")

    def add(self, partition: int, record: bytes) -> None:
        """Add one record."""
        self._records.setdefault(partition, []).append(record)
        self._num_bytes += len(record)
        if self._file_bytes and self._num_bytes >= self._file_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was collected.

        Raises:
            InputError: the file cannot be written.
        """
        if not self._records:
            return
        sizes = np.zeros(self._num_partitions + 1, _TABLE)
        for partition, records in self._records.items():
            sizes[partition + 1] = sum(map(len, records))
        table = np.cumsum(sizes, dtype=_TABLE) + sizes.nbytes
        blocks = [
            table.tobytes(),
            *(record for partition in sorted(self._records) for record in self._records[partition]),
        ]
        atomic_write(self._path(self.num_files), b"".join(blocks))
        self._records, self._num_bytes = {}, 0
        self.num_files += 1


def read_partitions(files: Sequence[Path], first: int, last: int) -> Iterator[tuple[Path, bytes]]:
    """Each file with the bytes of its partitions [first, last); files without any are left out."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            begin, end = (
                int(np.frombuffer(os.pread(handle, _TABLE.itemsize, _TABLE.itemsize * at), _TABLE)[0])
                for at in (first, last)
            )
            if end > begin:
                yield path, _read(handle, begin, end - begin)
        finally:
            os.close(handle)


def _read(handle: int, offset: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.pread(handle, size, offset)
        if not part:
            raise InputError(
                "a spilled file is shorter than it was; remove the .spill folder and run the command again"
            )
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_lines(files: Sequence[Path], first: int, last: int) -> Iterator[tuple[Path, Any]]:
    """File and value of each JSON line of a range of partitions."""
    for path, block in read_partitions(files, first, last):
        for line in block.splitlines():
            yield path, orjson.loads(line)


def to_line(value: Any) -> bytes:
    """A value as a JSON line."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


# --- the folder ------------------------------------------------------------------------------------------------------


def unit_stem(spill: str, unit: int) -> Path:
    """The common beginning of the names of a unit's files."""
    return Path(spill) / f"unit-{unit:06d}"


def files_of(spill: str, kind: str) -> list[Path]:
    """All files of a kind, by unit; call it after all units are finished."""
    return sorted(Path(spill).glob(f"*.{kind}"))


def begin_spill(spill: str, recipe: Any) -> None:
    """A folder for spilled records: those of an interrupted run with the same recipe stay, others are removed.

    Raises:
        InputError: the folder cannot be created.
    """
    plan = hash_of({"recipe": recipe, "format": _FORMAT, "versions": versions()})
    noted = Path(spill) / PLAN
    try:
        if json.loads(noted.read_text(encoding="utf-8")) == plan:
            return
    except (OSError, ValueError):
        pass
    remove_spill(spill)
    make_directory(spill)
    atomic_write(noted, json.dumps(plan))


def remove_spill(spill: str) -> None:
    """Remove the folder, its plan first: without a plan, a half-removed folder is not reused."""
    (Path(spill) / PLAN).unlink(missing_ok=True)
    shutil.rmtree(spill, ignore_errors=True)


def noted_report(path: Path) -> dict[str, Any] | None:
    """The report that a finished task wrote; None if it has not finished."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
