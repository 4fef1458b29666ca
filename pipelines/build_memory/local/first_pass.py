"""What the local job needs from all documents before chunking, on disk: counts by unit, near duplicates.

The corpus is read an extra time, only for `--limit` or `--near-duplicates`. Near duplicates follow the rule of
`near_duplicates`, with signatures and band entries on disk: about 540 bytes per document, and 30 for each of its bands.
"""

import functools
import itertools
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clara.data.records import Document
from clara.storage.folders import atomic_write
from pipelines.build_memory.outcome import MemoryJob
from pipelines.corpus import near_duplicates
from pipelines.corpus.chunks import documents_of
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.near_duplicates import NUM_HASHES, Signature, band_keys, duplicates_in_order, signature
from pipelines.corpus.spill import (
    SpillWriter,
    files_of,
    noted_report,
    partition_of,
    read_lines,
    read_partitions,
    to_line,
    unit_stem,
)
from pipelines.corpus.splits import Unit

_BANDS, _DUPLICATES = "bands", "alike"  # endings of spilled files
NUM_PARTITIONS = 256
"""Partitions of band entries; one partition is sorted in memory."""
_ENTRY = ">II"  # unit, position of the document in the unit
_SIGNED = np.dtype([("line", "<i8"), ("id_begin", "<i8"), ("id_bytes", "<i8"), ("signature", "<u4", NUM_HASHES)])
UnitOrigin = tuple[int, int, int]
"""Number of a unit, line and position of a document; units are numbered in the order of the corpus."""


def _note(spill: str, number: int) -> Path:
    return unit_stem(spill, number).with_suffix(".surveyed.json")


def _signatures(spill: str, number: int) -> Path:
    return unit_stem(spill, number).with_suffix(".signed")


def _names(spill: str, number: int) -> Path:
    return unit_stem(spill, number).with_suffix(".names")


def survey(number: int, unit: Unit, job: MemoryJob) -> int:
    """Count the documents of a unit that pass the filters, and write their signatures if the job needs them."""
    note = _note(job.spill, number)
    report = noted_report(note)
    if report is None:
        documents = (found for found in documents_of(unit, job) if isinstance(found, Document))
        count = _sign(number, documents, job) if job.min_hash else sum(1 for _ in documents)
        report = {"documents": count, "source": unit.name}
        atomic_write(note, json.dumps(report))
    return int(report["documents"])


def _sign(number: int, documents: Iterator[Document], job: MemoryJob) -> int:
    """Write signatures and band entries of the documents. Returns how many there are."""
    assert job.min_hash
    bands = SpillWriter(unit_stem(job.spill, number), _BANDS, NUM_PARTITIONS)
    path = _signatures(job.spill, number)
    partial = path.with_suffix(".partial")
    count = begin = 0
    with open(partial, "wb") as stream, open(_names(job.spill, number), "wb") as ids:
        for document in documents:
            if not job.limit or count < job.limit:
                own, name = signature(document.text), document.id.encode()
                stream.write(struct.pack("<qqq", document.line, begin, len(name)) + own.astype("<u4").tobytes())
                begin += ids.write(name)
                for key in band_keys(own, job.min_hash):
                    bands.add(partition_of(zlib.crc32(key), NUM_PARTITIONS), key + struct.pack(_ENTRY, number, count))
            count += 1
    bands.flush()
    partial.replace(path)
    return count


def within_limit(counts: Sequence[int], limit: int) -> list[int]:
    """Number of documents of each unit among the first `limit` of the corpus."""
    before = itertools.accumulate(counts, initial=0)
    return [max(0, min(count, limit - seen)) for count, seen in zip(counts, before, strict=False)]


# --- near duplicates
# ---------------------------------------------------------------------------------------------------


class Signatures:
    """Reads signatures of single documents. Files are not memory-mapped: mapped pages would count as process memory."""

    def __init__(self, spill: str) -> None:
        self._open = functools.lru_cache(64)(lambda number: open(_signatures(spill, number), "rb", buffering=0))  # noqa: SIM115 (closed when dropped)

    def read(self, number: int, place: int) -> tuple[UnitOrigin, Signature]:
        """Origin and signature of a unit's document."""
        stream = self._open(number)
        stream.seek(_SIGNED.itemsize * place)
        found = np.frombuffer(stream.read(_SIGNED.itemsize), _SIGNED)[0]
        return (number, int(found["line"]), place), found["signature"]


def _buckets(spill: str, partition: int, key_bytes: int, taken: list[int] | None) -> Iterator[list[tuple[int, int]]]:
    """Each bucket of a partition with two documents or more, as (unit, place), in the order of the corpus."""
    kind = np.dtype([("key", f"S{key_bytes}"), ("unit", ">u4"), ("place", ">u4")])
    blocks = [
        np.frombuffer(block, kind) for _, block in read_partitions(files_of(spill, _BANDS), partition, partition + 1)
    ]
    entries = np.concatenate([np.empty(0, kind), *blocks])
    if taken:
        entries = entries[entries["place"] < np.asarray(taken)[entries["unit"]]]
    entries = entries[np.argsort(entries["key"], kind="stable")]  # files come in the order of the corpus
    starts = (
        np.flatnonzero(np.concatenate([[True], entries["key"][1:] != entries["key"][:-1]]))
        if len(entries)
        else np.empty(0, int)
    )
    for begin, end in itertools.pairwise([*starts.tolist(), len(entries)]):
        if end - begin > 1:
            yield [
                (int(unit), int(position))
                for unit, position in zip(entries["unit"][begin:end], entries["place"][begin:end], strict=True)
            ]


def compare(partition: int, taken: list[int] | None, num_units: int, job: MemoryJob) -> None:
    """Spill the near duplicates of one partition's buckets, by unit."""
    assert job.min_hash
    stem = Path(job.spill) / f"alike-{partition:06d}"
    note = stem.with_suffix(".json")
    if noted_report(note) is None:
        written = SpillWriter(stem, _DUPLICATES, num_units)
        signatures = Signatures(job.spill)
        key_bytes = 2 + 4 * job.min_hash.band_size
        for bucket in _buckets(job.spill, partition, key_bytes, taken):
            for (unit, line, _), like in duplicates_in_order(
                (signatures.read(*entry) for entry in bucket), job.min_hash.threshold
            ):
                written.add(unit, to_line([line, *like]))
        written.flush()
        atomic_write(note, "{}")


def duplicates_of_unit(spill: str, number: int) -> dict[int, UnitOrigin]:
    """Line of each near duplicate in a unit → the first document that it is similar to."""
    found: dict[int, UnitOrigin] = {}
    for _, (line, *like) in read_lines(files_of(spill, _DUPLICATES), number, number + 1):
        found[line] = min(found.get(line, tuple(like)), tuple(like))
    return found


def dead_letter_for(document: Document, like: UnitOrigin, spill: str) -> DeadLetter:
    """The dead letter of a near duplicate."""
    unit, line, position = like
    return near_duplicates.dead_letter_for(document, (_source(spill, unit), line, _document_id(spill, unit, position)))


def _document_id(spill: str, number: int, position: int) -> str:
    with open(_signatures(spill, number), "rb") as signed, open(_names(spill, number), "rb") as ids:
        signed.seek(_SIGNED.itemsize * position)
        found = np.frombuffer(signed.read(_SIGNED.itemsize), _SIGNED)[0]
        ids.seek(int(found["id_begin"]))
        return ids.read(int(found["id_bytes"])).decode()


def _source(spill: str, number: int) -> str:
    report = noted_report(_note(spill, number))
    assert report is not None, "a unit was compared before it was surveyed"
    return str(report["source"])
