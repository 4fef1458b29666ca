"""Document ids shared by different texts: every text is kept; the job warns with a count and one example.

Only a short digest of each document is compared: 36 bytes on disk in the local run, one combiner entry in a graph.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara.data.records import Document
from pipelines.corpus.spill import NUM_PARTITIONS, SpillWriter, files_of, partition_of, read_partitions
from pipelines.corpus.splits import Unit

SEVERAL = "document ids of several texts"
EXAMPLE = "document id of several texts, the first"
NUM_GROUPS = 64
"""Groups of ids; the ids of a group are compared together."""
_FILES = "documents"
_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("content", ">u8"), ("unit", ">u4"), ("line", ">i8")])
_PACKED = ">16s8sIq"

TextOrigin = tuple[str, int, str]
"""Source and line of a document, and a digest of its content."""


def _digest(text: str, num_bytes: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=num_bytes).digest()


def content_digest(document: Document) -> bytes:
    """An eight-byte digest of a document's title and text."""
    return _digest(f"{document.title}\n{document.text}", 8)


def example(document_id: str, first: tuple[str, int], other: tuple[str, int]) -> str:
    """Text that reports an id of several texts: the id, and the first two origins whose content differs."""
    return f"{document_id!r} ({first[0]}:{first[1]} and {other[0]}:{other[1]})"


def two_that_differ(found: Iterable[tuple[TextOrigin, ...]]) -> tuple[TextOrigin, ...]:
    """The first origin, and the first with other content if there is one; also combines partial results."""
    origins = sorted(origin for part in found for origin in part)
    others = [origin for origin in origins if origin[2] != origins[0][2]]
    return tuple([*origins[:1], *others[:1]])


# --- on one machine's disk
# ---------------------------------------------------------------------------------------------


class IdWriter:
    """Spills the digests of a unit's documents."""

    def __init__(self, stem: Path, unit: int) -> None:
        self._unit = unit
        self._writer = SpillWriter(stem, _FILES, NUM_PARTITIONS)

    def add(self, document: Document) -> None:
        """Add one."""
        own = _digest(document.id, 16)
        partition = partition_of(int.from_bytes(own[-2:], "big"), 0)
        self._writer.add(partition, struct.pack(_PACKED, own, content_digest(document), self._unit, document.line))

    def flush(self) -> None:
        """Write what was collected."""
        self._writer.flush()


UnitOrigin = tuple[int, int]
"""Number of a unit and line of a document; units are numbered in the order of the corpus."""


def compare_ids(group: int, spill: str) -> tuple[int, tuple[UnitOrigin, UnitOrigin] | None]:
    """Number of ids in a group that different texts share, and two origins of the first such id."""
    first, last = (NUM_PARTITIONS * edge // NUM_GROUPS for edge in (group, group + 1))
    blocks = [np.frombuffer(block, _ENTRY) for _, block in read_partitions(files_of(spill, _FILES), first, last)]
    entries = np.concatenate([np.empty(0, _ENTRY), *blocks])
    if not len(entries):
        return 0, None
    entries = entries[np.lexsort([entries[name] for name in ("line", "unit", "low", "high")])]
    begins = np.concatenate(
        [[True], (entries["high"][1:] != entries["high"][:-1]) | (entries["low"][1:] != entries["low"][:-1])]
    )
    starts, own = np.flatnonzero(begins), np.cumsum(begins) - 1
    differing = np.flatnonzero(entries["content"] != entries["content"][starts][own])
    ids, at = np.unique(own[differing], return_index=True)
    pairs = (
        (_origin(entries[starts[one]]), _origin(entries[differing[other]])) for one, other in zip(ids, at, strict=True)
    )
    return len(ids), min(pairs, default=None)


def _origin(entry: Any) -> UnitOrigin:
    return int(entry["unit"]), int(entry["line"])


def example_of(
    pair: tuple[UnitOrigin, UnitOrigin] | None, units: Sequence[Unit], read: Callable[[Unit], Iterable[Any]]
) -> str:
    """The `example` for a pair returned by `compare_ids`; `read` reads a unit's documents again, to get the id."""
    if not pair:
        return ""
    (number, line), (other, other_line) = pair
    document = next(found for found in read(units[number]) if isinstance(found, Document) and found.line == line)
    return example(document.id, (document.source, line), (units[other].name, other_line))
