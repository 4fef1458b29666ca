"""The graph of `build_memory` on one machine: chunks go to disk and not through the runner, so that memory does not grow with the corpus.

Units are read and chunked, and their chunks are put aside by partition; shards are then compressed from the partitions.
Only numbers of units and shards, counts and reports pass through the runner. What comes out is what `memory_job` makes,
byte for byte: equal chunks have equal ids, so they meet in one partition, where the first in the corpus wins. Pieces of
work that are finished are noted beside their files, and not done again.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsList, AsSingleton, PCollection, TaggedOutput
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared

from clara.memory.codec import CODECS
from clara.storage.artefact import atomic_write
from pipelines.build_memory.graph import WriteShards, default_num_shards, trained_codebook
from pipelines.build_memory.local import first_pass as local_survey
from pipelines.build_memory.local.records import (
    CHUNK_FILES,
    NUM_GROUPS,
    ChunkWriter,
    LetterWriter,
    codebook_sample,
    count_unique,
    winners,
    write_letters_part,
)
from pipelines.build_memory.outcome import Job, complete
from pipelines.corpus.chunking import Tokens
from pipelines.corpus.chunks import TALLY, TallyOutput, checkpoint_tokens, chunk_tallies, chunks_of, documents_of, tally
from pipelines.corpus.counts import BEYOND_LIMIT, DOCUMENTS, DUPLICATES, RECORDS, UNIQUE
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.dead_letters import letters_of_report, num_parts_of, tell_runner
from pipelines.corpus.document_ids import IdWriter, add_comparison
from pipelines.corpus.exact_duplicates import Kept, letter_of
from pipelines.corpus.spill import files_of, noted_report, unit_stem
from pipelines.corpus.splits import Unit
from pipelines.job.completion import add_outcome

_REASONS = "reasons"
ReasonOutput = TaggedOutput[Literal["reasons"], tuple[tuple[bool, str], int]]


def reasoned(reason: tuple[bool, str], count: int) -> ReasonOutput:
    """How many letters have a reason, on the output for that."""
    tell_runner(*reason, count)
    return TaggedOutput("reasons", (reason, count))


# --- steps
# -------------------------------------------------------------------------------------------------------------


class PutAside(beam.DoFn):
    """(Number, unit) → the number, once its chunks and letters are on disk; tallies, and letters by reason, aside."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()

    def process(
        self, element: tuple[int, Unit], taken: list[int] | None, _compared: int
    ) -> Iterator[int | TallyOutput | ReasonOutput]:
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
        chunks, letters, ids = ChunkWriter(stem, job.num_shards), LetterWriter(stem), IdWriter(stem, number)
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
                ids.add(found)
                made = chunks_of(found, tokens, job.fingerprint)
                if isinstance(made, DeadLetter):
                    letters.add(made)
                    continue
                for name, count in chunk_tallies(found, made, tokens):
                    tallies[name] += count
                for chunk in made:
                    if not chunks.add(chunk, found.line):
                        letters.add(letter_of(Kept(chunk, found.line)))
        chunks.flush()
        letters.flush()
        ids.flush()
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
            self._files = files_of(job.spill, CHUNK_FILES)
        letters = LetterWriter(Path(job.spill) / f"shard-{index:06d}")
        kept = winners(
            self._files,
            index,
            num_shards,
            fixed=bool(job.num_shards),
            lost=lambda duplicate: letters.add(letter_of(duplicate)),
        )
        if not kept and not job.update:
            return
        report = self.written(index, kept, num_shards, codebook)
        for letter in letters_of_report(report):
            letters.add(letter)
        letters.flush()
        # What grows with the rows has been written by now.
        yield {name: value for name, value in report.items() if name not in ("failures", "written")}
        yield tally(UNIQUE, len(kept))
        yield tally(DUPLICATES, sum(one.count for one in kept) - len(kept))
        for reason, count in letters.reasons.items():
            yield reasoned(reason, count)


# --- the graph
# ---------------------------------------------------------------------------------------------------------


def _once(pipeline: beam.Pipeline, label: str) -> PCollection[Any]:
    return pipeline | label >> beam.Create([None])


def _num_shards(pipeline: beam.Pipeline, job: Job, ready: AsSingleton) -> PCollection[int]:
    if job.num_shards:
        return pipeline | "FixedShards" >> beam.Create([job.num_shards])
    return (
        pipeline
        | "ListGroups" >> beam.Create(range(NUM_GROUPS))
        | "CountChunks" >> beam.Map(count_unique, job.spill, ready)
        | "SumChunks" >> beam.CombineGlobally(sum)
        | "ChooseShards" >> beam.Map(default_num_shards)
    )


def _codebook(
    pipeline: beam.Pipeline, job: Job, num_shards: AsSingleton, ready: AsSingleton
) -> PCollection[dict[str, Any] | None]:
    if job.update or not CODECS[job.codec].has_codebook:
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
        | "PutAside"
        >> beam.ParDo(PutAside(job), AsSingleton(taken), AsSingleton(compared)).with_outputs(
            TALLY, _REASONS, main="units"
        )
    )
    ready = AsSingleton(aside.units | "CountUnits" >> combiners.Count.Globally())
    num_shards = AsSingleton(_num_shards(pipeline, job, ready))
    codebook = AsSingleton(_codebook(pipeline, job, num_shards, ready))
    compressed = (
        _once(pipeline, "AllUnitsAside")
        | "ListShards" >> beam.FlatMap(lambda _, shards, _ready: list(range(shards)), num_shards, ready)
        | "SpreadShards" >> beam.Reshuffle()
        | "CompressAndWrite"
        >> beam.ParDo(CompressShard(job), num_shards, codebook).with_outputs(TALLY, _REASONS, main="reports")
    )
    several, first_of_several = add_comparison(
        pipeline, job.spill, ready, ordered, functools.partial(documents_of, job=job)
    )
    totals = (
        [aside[TALLY], compressed[TALLY], several]
        | "AllTallies" >> beam.Flatten()
        | "SumTallies" >> beam.CombinePerKey(sum)
    )
    reasons = (
        [aside[_REASONS], compressed[_REASONS]]
        | "AllReasons" >> beam.Flatten()
        | "SumReasons" >> beam.CombinePerKey(sum)
    )
    num_parts = (
        reasons
        | "LetterCounts" >> beam.Values()
        | "CountLetters" >> beam.CombineGlobally(sum)
        | "ChooseParts" >> beam.Map(num_parts_of)
    )
    files = (
        num_parts
        | "ListParts" >> beam.FlatMap(lambda parts: list(range(parts)))
        | "WriteLetters" >> beam.Map(write_letters_part, AsSingleton(num_parts), job)
    )
    parts = (
        AsList(compressed.reports),
        AsList(files),
        AsDict(reasons),
        AsDict(totals),
        first_of_several,
        num_shards,
        codebook,
    )
    return add_outcome(pipeline, functools.partial(complete, job), job.output, *parts)
