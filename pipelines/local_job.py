"""The graph of `build_memory` on one machine: chunks go to disk and not through the runner, so that memory does not grow with the corpus.

Units are read and chunked, and their chunks are put aside by partition; shards are then compressed from the partitions. Only numbers of units and
shards, counts and reports pass through the runner. What comes out is what `memory_job` makes, byte for byte: equal chunks have equal ids, so they
meet in one partition, where the first in the corpus wins. Pieces of work that are finished are noted beside their files, and not done again.
"""

import heapq
import json
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict, AsList, AsSingleton, PCollection, TaggedOutput
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared

from clara.artefact import atomic_write
from clara.codec import pq_width
from clara.product_quantiser import num_sampled, sample_order
from clara.records import Chunk
from pipelines import local_survey
from pipelines.chunking import Tokens
from pipelines.dead_letters import letters_of_report, num_parts_of, number_of, tell_runner, write_part
from pipelines.dedup import Kept, first_of
from pipelines.memory_job import (
    Complete,
    TallyOutput,
    WriteShards,
    checkpoint_tokens,
    chunk_tallies,
    chunks_of,
    default_num_shards,
    documents_of,
    tally,
    trained_codebook,
)
from pipelines.memory_outcome import BEYOND_LIMIT, CHUNKS, DOCUMENTS, DUPLICATES, RECORDS, UNIQUE, Job
from pipelines.progress import Reading
from pipelines.spill import (
    NUM_PARTITIONS,
    SpillWriter,
    files_of,
    noted_report,
    partition_of,
    partitions_of_shard,
    read_lines,
    read_partitions,
    to_line,
    unit_stem,
)
from pipelines.units import DeadLetter, Unit

_CHUNKS, _IDS, _LETTERS = "chunks", "ids", "letters"
_FILE_BYTES = 16 * 2**20
_RECORD_BYTES = 500  # what a chunk takes in memory beside its text
_NUM_GROUPS = 64  # of partitions that are counted together
_TALLY, _REASONS = "tally", "reasons"
ReasonOutput = TaggedOutput[Literal["reasons"], tuple[tuple[bool, str], int]]


def reasoned(reason: tuple[bool, str], count: int) -> ReasonOutput:
    """How many letters have a reason, on the output for that."""
    tell_runner(*reason, count)
    return TaggedOutput("reasons", (reason, count))


# --- chunks on disk ----------------------------------------------------------------------------------------------------


class ChunkWriter:
    """Puts the chunks of a unit aside; of equal ones in one file the first stays, with how many there were."""

    def __init__(self, stem: Path, num_shards: int) -> None:
        self._num_shards = num_shards
        partitions = num_shards or NUM_PARTITIONS
        self._chunks = SpillWriter(stem, _CHUNKS, partitions, None)
        self._ids = SpillWriter(stem, _IDS, partitions, None)
        self._records: dict[str, tuple[int, bytes]] = {}
        self._counts: Counter[str] = Counter()
        self._num_bytes = 0

    def add(self, chunk: Chunk, line: int) -> None:
        """Add the chunk that comes next in the corpus."""
        self._counts[chunk.chunk_id] += 1
        if chunk.chunk_id in self._records:
            return
        record = to_line([line, *astuple(chunk)])
        self._records[chunk.chunk_id] = chunk.row_id, record
        self._num_bytes += len(record) + _RECORD_BYTES
        if self._num_bytes >= _FILE_BYTES:
            self.flush()

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


def winners(files: Sequence[Path], shard: int, num_shards: int, *, fixed: bool) -> list[Kept]:
    """Of each content in a shard the first in the corpus, out of all files; one line after the other, so that duplicates take no memory."""
    found: dict[str, Kept] = {}
    for _, block in read_partitions(files, *_partitions(shard, num_shards, fixed)):
        for entry in block.splitlines():
            count, _, record = entry.partition(b" ")
            line, *values = json.loads(record)
            kept = Kept(Chunk(*values), line, int(count))
            if kept.chunk.row_id % num_shards == shard:
                found[kept.chunk.chunk_id] = first_of((found.get(kept.chunk.chunk_id), kept)) or kept
    return list(found.values())


def _unique_ids(spill: str, group: int, num_partitions: int) -> Any:
    """Row ids `[n]` of one group of partitions, each once."""
    first, last = (num_partitions * edge // _NUM_GROUPS for edge in (group, group + 1))
    blocks = [np.frombuffer(block, "<i8") for _, block in read_partitions(files_of(spill, _IDS), first, last)]
    return np.unique(np.concatenate([np.empty(0, "<i8"), *blocks]))


def count_unique(group: int, spill: str, _ready: int) -> int:
    """How many contents there are in one group of partitions."""
    return len(_unique_ids(spill, group, NUM_PARTITIONS))


def codebook_sample(job: Job, num_shards: int) -> list[Kept]:
    """The chunks that a codebook is trained on: those of the smallest `sample_order`, a group of partitions at a time."""
    size = num_sampled(job.fingerprint.num_memory_tokens)
    chosen: list[tuple[str, int]] = []
    for group in range(_NUM_GROUPS):
        drawn = ((sample_order(row), row) for row in _unique_ids(job.spill, group, job.num_shards or NUM_PARTITIONS).tolist())
        chosen = heapq.nsmallest(size, (*chosen, *heapq.nsmallest(size, drawn)))
    rows = {row for _, row in chosen}
    files = files_of(job.spill, _CHUNKS)
    sample = []
    for shard in sorted({row % num_shards for row in rows}):
        sample += [kept for kept in winners(files, shard, num_shards, fixed=bool(job.num_shards)) if kept.chunk.row_id in rows]
    return sample


# --- letters on disk ---------------------------------------------------------------------------------------------------


class LetterWriter:
    """Puts dead letters aside, and counts them by reason."""

    def __init__(self, stem: Path) -> None:
        self._writer = SpillWriter(stem, _LETTERS, NUM_PARTITIONS)
        self.reasons: Counter[tuple[bool, str]] = Counter()

    def add(self, letter: DeadLetter) -> None:
        """Add one."""
        self.reasons[letter.dropped, letter.reason] += 1
        self._writer.add(partition_of(number_of(letter), 0), to_line(astuple(letter)))

    def flush(self) -> None:
        """Write what was collected."""
        self._writer.flush()


def write_letters_part(part: int, num_parts: int, job: Job) -> dict[str, Any]:
    """One part of the dead-letter dataset, from what was put aside. Returns its manifest entry."""
    found = (DeadLetter(*values) for _, values in read_lines(files_of(job.spill, _LETTERS), *partitions_of_shard(part, num_parts)))
    return write_part((part, (letter for letter in found if number_of(letter) % num_parts == part)), num_parts, job.output)


class ReadSoFar:
    """How many units' chunks are on disk, told by their notes, each of which is read once."""

    def __init__(self, spill: str, num_units: int) -> None:
        self._spill, self._num_units = Path(spill), num_units
        self._known: dict[str, tuple[int, int]] = {}

    def __call__(self) -> Reading:
        """As of now."""
        for path in self._spill.glob("unit-??????.json"):
            if path.name not in self._known and (report := noted_report(path)):
                self._known[path.name] = report["tallies"].get(DOCUMENTS, 0), report["tallies"].get(CHUNKS, 0)
        documents, chunks = (sum(counts[i] for counts in self._known.values()) for i in range(2))
        return Reading(len(self._known), self._num_units, documents, chunks)


# --- steps -------------------------------------------------------------------------------------------------------------


class PutAside(beam.DoFn):
    """(Number, unit) → the number, once its chunks and letters are on disk; tallies, and letters by reason, aside."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()

    def process(self, element: tuple[int, Unit], taken: list[int] | None, _compared: int) -> Iterator[int | TallyOutput | ReasonOutput]:
        """Read and chunk one unit, or find it finished.

        Args:
            element: the unit and its number.
            taken: how many documents of each unit are within the limit; None: all.
            _compared: near duplicates are known by now.
        """
        number, unit = element
        note = unit_stem(self._job.spill, number).with_suffix(".json")
        report = noted_report(note)
        if report is None:
            report = self._put_aside(number, unit, taken)
            atomic_write(note, json.dumps(report))
        yield number
        for name, count in report["tallies"].items():
            yield tally(name, count)
        for dropped, reason, count in report["reasons"]:
            yield reasoned((dropped, reason), count)

    def _put_aside(self, number: int, unit: Unit, taken: list[int] | None) -> dict[str, Any]:
        job, stem = self._job, unit_stem(self._job.spill, number)
        tokens: Tokens = self._shared.acquire(lambda: checkpoint_tokens(job.checkpoint))
        chunks, letters = ChunkWriter(stem, job.num_shards), LetterWriter(stem)
        alike = local_survey.losers_of_unit(job.spill, number) if job.likeness else {}
        tallies: Counter[str] = Counter({RECORDS: 0, **({BEYOND_LIMIT: 0} if taken else {})})
        place = 0
        for found in documents_of(unit, job):
            tallies[RECORDS] += 1
            if isinstance(found, DeadLetter):
                letters.add(found)
                continue
            place += 1
            if taken and place > taken[number]:
                tallies[BEYOND_LIMIT] += 1
            elif found.line in alike:
                letters.add(local_survey.letter_of(found, alike[found.line], job.spill))
            else:
                tallies[DOCUMENTS] += 1
                made = chunks_of(found, tokens, job.fingerprint)
                if isinstance(made, DeadLetter):
                    letters.add(made)
                    continue
                for name, count in chunk_tallies(made):
                    tallies[name] += count
                for chunk in made:
                    chunks.add(chunk, found.line)
        chunks.flush()
        letters.flush()
        return {"tallies": tallies, "reasons": [(*reason, count) for reason, count in letters.reasons.items()]}


class CompressShard(WriteShards):
    """Number of a shard → its report, compressed from what was put aside; tallies, and letters by reason, aside."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._files: list[Path] | None = None

    def process(  # type: ignore[override]
        self, index: int, num_shards: int, codebook: dict[str, Any] | None
    ) -> Iterator[dict[str, Any] | TallyOutput | ReasonOutput]:
        """Compress and write one shard, or find it finished; one without chunks has no report, unless it is an update's."""
        job = self._job
        if self._files is None:
            self._files = files_of(job.spill, _CHUNKS)
        kept = winners(self._files, index, num_shards, fixed=bool(job.num_shards))
        if not kept and not job.update:
            return
        report = self.written(index, kept, num_shards, codebook)
        letters = LetterWriter(Path(job.spill) / f"shard-{index:06d}")
        for letter in letters_of_report(report):
            letters.add(letter)
        letters.flush()
        # What grows with the rows has been written by now.
        yield {name: value for name, value in report.items() if name not in ("failures", "written")}
        yield tally(UNIQUE, len(kept))
        yield tally(DUPLICATES, sum(one.count for one in kept) - len(kept))
        for reason, count in letters.reasons.items():
            yield reasoned(reason, count)


# --- the graph ---------------------------------------------------------------------------------------------------------


def _once(pipeline: beam.Pipeline, label: str) -> PCollection[Any]:
    return pipeline | label >> beam.Create([None])


def _num_shards(pipeline: beam.Pipeline, job: Job, ready: AsSingleton) -> PCollection[int]:
    if job.num_shards:
        return pipeline | "FixedShards" >> beam.Create([job.num_shards])
    return (
        pipeline
        | "ListGroups" >> beam.Create(range(_NUM_GROUPS))
        | "CountChunks" >> beam.Map(count_unique, job.spill, ready)
        | "SumChunks" >> beam.CombineGlobally(sum)
        | "ChooseShards" >> beam.Map(default_num_shards)
    )


def _codebook(pipeline: beam.Pipeline, job: Job, num_shards: AsSingleton, ready: AsSingleton) -> PCollection[dict[str, Any] | None]:
    if job.update or not pq_width(job.codec):
        return _once(pipeline, "NoCodebook")
    return _once(pipeline, "OneCodebook") | "TrainCodebook" >> beam.Map(
        lambda _, shards, _ready: trained_codebook(job, codebook_sample(job, shards)), num_shards, ready
    )


def add_local_job(pipeline: beam.Pipeline, units: Sequence[Unit], job: Job) -> PCollection[dict[str, Any]]:
    """Add the whole job to a pipeline of the local runner. Returns its one outcome: `{"counts": …}` or `{"error": …}`."""
    # A unit's number tells its place in the corpus, as a document's source and line do.
    ordered = sorted(units, key=lambda unit: (unit.name, unit.first_line))
    numbered = pipeline | "ListUnits" >> beam.Create(list(enumerate(ordered)))
    taken, compared = local_survey.add_survey(pipeline, numbered, len(ordered), job)
    aside = (
        numbered
        | "SpreadUnits" >> beam.Reshuffle()
        | "PutAside" >> beam.ParDo(PutAside(job), AsSingleton(taken), AsSingleton(compared)).with_outputs(_TALLY, _REASONS, main="units")
    )
    ready = AsSingleton(aside.units | "CountUnits" >> combiners.Count.Globally())
    num_shards = AsSingleton(_num_shards(pipeline, job, ready))
    codebook = AsSingleton(_codebook(pipeline, job, num_shards, ready))
    compressed = (
        _once(pipeline, "AllUnitsAside")
        | "ListShards" >> beam.FlatMap(lambda _, shards, _ready: list(range(shards)), num_shards, ready)
        | "SpreadShards" >> beam.Reshuffle()
        | "CompressAndWrite" >> beam.ParDo(CompressShard(job), num_shards, codebook).with_outputs(_TALLY, _REASONS, main="reports")
    )
    totals = [aside[_TALLY], compressed[_TALLY]] | "AllTallies" >> beam.Flatten() | "SumTallies" >> beam.CombinePerKey(sum)
    reasons = [aside[_REASONS], compressed[_REASONS]] | "AllReasons" >> beam.Flatten() | "SumReasons" >> beam.CombinePerKey(sum)
    num_parts = (
        reasons | "LetterCounts" >> beam.Values() | "CountLetters" >> beam.CombineGlobally(sum) | "ChooseParts" >> beam.Map(num_parts_of)
    )
    files = (
        num_parts
        | "ListParts" >> beam.FlatMap(lambda parts: list(range(parts)))
        | "WriteLetters" >> beam.Map(write_letters_part, AsSingleton(num_parts), job)
    )
    return _once(pipeline, "Once") | "Complete" >> beam.ParDo(
        Complete(job), AsList(compressed.reports), AsList(files), AsDict(reasons), AsDict(totals), num_shards, codebook
    )
