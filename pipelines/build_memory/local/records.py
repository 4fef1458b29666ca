"""Records that the local job spills to disk: chunks by partition (the first in the corpus wins), dead letters."""

import heapq
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from clara.data.records import Chunk
from clara.memory.product_quantiser import num_sampled, sample_order
from pipelines.build_memory.outcome import MemoryJob
from pipelines.corpus.counts import CHUNKS, DOCUMENTS
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.dead_letters import number_of, write_part
from pipelines.corpus.exact_duplicates import UniqueChunk, first_of_two
from pipelines.corpus.spill import (
    NUM_PARTITIONS,
    SpillWriter,
    files_of,
    noted_report,
    partition_of,
    partitions_of_shard,
    read_lines,
    read_partitions,
    to_line,
)
from pipelines.job.progress import Reading

CHUNK_FILES = "chunks"
_IDS, _LETTERS = "ids", "letters"
_FILE_BYTES = 16 * 2**20
_RECORD_BYTES = 500  # memory of a chunk beside its text
NUM_GROUPS = 64
"""Groups of partitions; the partitions of a group are counted together."""

# --- chunks on disk
# ----------------------------------------------------------------------------------------------------


class ChunkWriter:
    """Spills the chunks of a unit; of equal chunks in one file only the first is written, with their number."""

    def __init__(self, stem: Path, num_shards: int) -> None:
        self._num_shards = num_shards
        partitions = num_shards or NUM_PARTITIONS
        self._chunks = SpillWriter(stem, CHUNK_FILES, partitions, None)
        self._ids = SpillWriter(stem, _IDS, partitions, None)
        self._records: dict[str, tuple[int, bytes]] = {}
        self._counts: Counter[str] = Counter()
        self._num_bytes = 0

    def add(self, chunk: Chunk, line: int) -> bool:
        """Add the chunk that comes next in the corpus.

        Returns True if the chunk will be written, False if it only counts as a repetition of an earlier one.
        """
        self._counts[chunk.chunk_id] += 1
        if chunk.chunk_id in self._records:
            return False
        record = to_line([line, *vars(chunk).values()])
        self._records[chunk.chunk_id] = chunk.row_id, record
        self._num_bytes += len(record) + _RECORD_BYTES
        if self._num_bytes >= _FILE_BYTES:
            self.flush()
        return True

    def flush(self) -> None:
        """Write what was collected."""
        for chunk_id, (row_id, record) in self._records.items():
            partition = partition_of(row_id, self._num_shards)
            self._chunks.add(partition, b"%d %b" % (self._counts[chunk_id], record))
            self._ids.add(partition, struct.pack("<q", row_id))
        self._chunks.flush()
        self._ids.flush()
        self._records, self._num_bytes = {}, 0
        self._counts.clear()


def _partitions(shard: int, num_shards: int, fixed: bool) -> tuple[int, int]:
    return (shard, shard + 1) if fixed else partitions_of_shard(shard, num_shards)


def first_occurrences(
    files: Sequence[Path],
    shard: int,
    num_shards: int,
    *,
    fixed: bool,
    on_duplicate: Callable[[UniqueChunk], None] = lambda duplicate: None,
) -> list[UniqueChunk]:
    """The first chunk of each content in a shard, over all files, read line by line: duplicates take no memory.

    `on_duplicate` is called with each other chunk, except those that `ChunkWriter` did not write.
    """
    found: dict[str, UniqueChunk] = {}
    for _, block in read_partitions(files, *_partitions(shard, num_shards, fixed)):
        for entry in block.splitlines():
            count, _, record = entry.partition(b" ")
            line, *values = orjson.loads(record)
            kept = UniqueChunk(Chunk(*values), line, int(count))
            if kept.chunk.row_id % num_shards == shard:
                other = found.get(kept.chunk.chunk_id)
                first = kept if other is None else first_of_two(other, kept)
                if other is not None:
                    on_duplicate(other if first.chunk is kept.chunk else kept)
                found[kept.chunk.chunk_id] = first
    return list(found.values())


def _unique_ids(spill: str, group: int, num_partitions: int) -> Any:
    """Row ids `[n]` of one group of partitions, each once."""
    first, last = (num_partitions * edge // NUM_GROUPS for edge in (group, group + 1))
    blocks = [np.frombuffer(block, "<i8") for _, block in read_partitions(files_of(spill, _IDS), first, last)]
    return np.unique(np.concatenate([np.empty(0, "<i8"), *blocks]))


def count_unique(group: int, spill: str) -> int:
    """Number of different contents in one group of partitions."""
    return len(_unique_ids(spill, group, NUM_PARTITIONS))


def codebook_sample(job: MemoryJob, num_shards: int) -> list[UniqueChunk]:
    """The chunks that a codebook is trained on: smallest `sample_order`, read by groups of partitions."""
    size = num_sampled(job.fingerprint.num_memory_tokens)
    chosen: list[tuple[str, int]] = []
    for group in range(NUM_GROUPS):
        drawn = (
            (sample_order(row), row) for row in _unique_ids(job.spill, group, job.num_shards or NUM_PARTITIONS).tolist()
        )
        chosen = heapq.nsmallest(size, (*chosen, *heapq.nsmallest(size, drawn)))
    rows = {row for _, row in chosen}
    files = files_of(job.spill, CHUNK_FILES)
    sample = []
    for shard in sorted({row % num_shards for row in rows}):
        sample += [
            kept
            for kept in first_occurrences(files, shard, num_shards, fixed=bool(job.num_shards))
            if kept.chunk.row_id in rows
        ]
    return sample


# --- dead letters on disk
# ---------------------------------------------------------------------------------------------------


class LetterWriter:
    """Spills dead letters, and counts them by reason."""

    def __init__(self, stem: Path) -> None:
        self._writer = SpillWriter(stem, _LETTERS, NUM_PARTITIONS)
        self._reasons: Counter[tuple[bool, str]] = Counter()

    def add(self, letter: DeadLetter) -> None:
        """Add one record."""
        self._reasons[letter.dropped, letter.reason] += 1
        self._writer.add(partition_of(number_of(letter), 0), to_line(list(vars(letter).values())))

    def by_reason(self) -> list[tuple[bool, str, int]]:
        """(Dropped, reason, number of letters)."""
        return [(*reason, count) for reason, count in self._reasons.items()]

    def flush(self) -> None:
        """Write what was collected."""
        self._writer.flush()


def write_letters_part(part: int, num_parts: int, job: MemoryJob) -> dict[str, Any]:
    """Write one part of the dead-letter dataset from spilled records. Returns its manifest entry."""
    found = (
        DeadLetter(*values)
        for _, values in read_lines(files_of(job.spill, _LETTERS), *partitions_of_shard(part, num_parts))
    )
    return write_part(
        (part, (letter for letter in found if number_of(letter) % num_parts == part)), num_parts, job.output
    )


class ReadSoFar:
    """Progress of reading, from the reports of finished units; each report is read once."""

    def __init__(self, spill: str, num_units: int) -> None:
        self._spill, self._num_units = Path(spill), num_units
        self._known: dict[str, tuple[int, int]] = {}

    def __call__(self) -> Reading:
        """Report the progress so far."""
        for path in self._spill.glob("unit-??????.json"):
            if path.name not in self._known and (report := noted_report(path)):
                self._known[path.name] = report["tallies"].get(DOCUMENTS, 0), report["tallies"].get(CHUNKS, 0)
        documents, chunks = (sum(counts[i] for counts in self._known.values()) for i in range(2))
        return Reading(len(self._known), self._num_units, documents, chunks)
