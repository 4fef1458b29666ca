"""Tasks of the local run, executed by one process of its pool: read and chunk a unit, compress a shard.

A task that writes to the spill folder writes a report last; a task with a report is not executed again.
"""

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.model.model import ClaraModel
from clara.storage.folders import atomic_write
from pipelines.build_memory.local import first_pass
from pipelines.build_memory.local.records import (
    CHUNK_FILES,
    ChunkWriter,
    LetterWriter,
    codebook_sample,
    count_unique,
    first_occurrences,
    write_letters_part,
)
from pipelines.build_memory.outcome import MemoryJob
from pipelines.build_memory.shard import compress_shard, load_compressor, trained_codebook
from pipelines.corpus import document_ids
from pipelines.corpus.census import Census
from pipelines.corpus.chunking import Tokens
from pipelines.corpus.chunks import checkpoint_tokens, chunk_tallies, chunks_of, documents_of
from pipelines.corpus.counts import BEYOND_LIMIT, DOCUMENTS, DUPLICATES, RECORDS, UNIQUE
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.dead_letters import letters_of_report
from pipelines.corpus.exact_duplicates import UniqueChunk, dead_letter_for
from pipelines.corpus.spill import NUM_PARTITIONS, SpillWriter, files_of, noted_report, unit_stem
from pipelines.corpus.splits import Unit


@dataclass(frozen=True)
class ShardPlan:
    """What all shards of a MEMORY have in common; `codebook` is None where the codec has none."""

    num_shards: int
    codebook: dict[str, Any] | None


class Worker:
    """Tokenizer and model are loaded by the first task that needs them."""

    def __init__(self, job: MemoryJob) -> None:
        self.job = job
        self._chunk_files: list[Path] | None = None

    @functools.cached_property
    def tokens(self) -> Tokens:
        """What chunking needs of the tokenizer."""
        return checkpoint_tokens(self.job.checkpoint)

    @functools.cached_property
    def model(self) -> ClaraModel:
        """The compressor."""
        return load_compressor(self.job)

    def survey(self, unit: tuple[int, Unit]) -> int:
        """See `first_pass.survey`."""
        return first_pass.survey(*unit, self.job)

    def compare(self, partition: int, taken: list[int] | None, num_units: int) -> None:
        """See `first_pass.compare`."""
        first_pass.compare(partition, taken, num_units, self.job)

    def read_unit(self, unit: tuple[int, Unit], taken: list[int] | None) -> dict[str, Any]:
        """Read and chunk one unit into the spill folder.

        Args:
            unit: the unit and its number.
            taken: number of documents of each unit within the limit; None: all.

        Returns:
            `tallies`, and `reasons`: (dropped, reason, number of dead letters).
        """
        note = unit_stem(self.job.spill, unit[0]).with_suffix(".json")
        report = noted_report(note)
        if report is None:
            report = self._spill_unit(*unit, taken)
            atomic_write(note, json.dumps(report))
        return report

    def _spill_unit(self, number: int, unit: Unit, taken: list[int] | None) -> dict[str, Any]:
        job, stem = self.job, unit_stem(self.job.spill, number)
        chunks, letters = ChunkWriter(stem, job.num_shards), LetterWriter(stem)
        ids = SpillWriter(stem, document_ids.FILES, NUM_PARTITIONS)
        alike = first_pass.duplicates_of_unit(job.spill, number) if job.min_hash else {}
        tallies: Counter[str] = Counter({RECORDS: 0, **({BEYOND_LIMIT: 0} if taken else {})})
        position, census = 0, Census(unit.name, job.fields)
        for found in documents_of(unit, job, census):
            tallies[RECORDS] += 1
            if isinstance(found, DeadLetter):
                letters.add(found)
                continue
            position += 1
            if taken and position > taken[number]:
                tallies[BEYOND_LIMIT] += 1
            elif found.line in alike:
                letters.add(first_pass.dead_letter_for(found, alike[found.line], job.spill))
            else:
                tallies[DOCUMENTS] += 1
                ids.add(*document_ids.spilled(found))
                made = chunks_of(found, self.tokens, job.fingerprint)
                if isinstance(made, DeadLetter):
                    letters.add(made)
                    continue
                for name, count in chunk_tallies(found, made, self.tokens):
                    tallies[name] += count
                for chunk in made:
                    if not chunks.add(chunk, found.line):
                        letters.add(dead_letter_for(UniqueChunk(chunk, found.line)))
        chunks.flush()
        letters.flush()
        ids.flush()
        tallies.update(census.tallies())
        return {"tallies": tallies, "reasons": letters.by_reason()}

    def count_unique(self, group: int) -> int:
        """See `records.count_unique`."""
        return count_unique(group, self.job.spill)

    def compare_ids(self, group: int) -> tuple[int, document_ids.SharedId | None]:
        """See `document_ids.compare_ids`."""
        return document_ids.compare_ids(group, self.job.spill)

    def train_codebook(self, num_shards: int) -> dict[str, Any] | None:
        """See `trained_codebook`."""
        return trained_codebook(self.job, codebook_sample(self.job, num_shards), lambda: self.model)

    def compress(self, index: int, plan: ShardPlan) -> dict[str, Any] | None:
        """Compress and write one shard from the spill folder.

        Returns:
            `report` of the shard, `tallies` and `reasons` as returned by `read_unit`; None if the shard has no chunk (a
            shard of an update always has a report).
        """
        job = self.job
        if self._chunk_files is None:
            self._chunk_files = files_of(job.spill, CHUNK_FILES)
        letters = LetterWriter(Path(job.spill) / f"shard-{index:06d}")
        kept = first_occurrences(
            self._chunk_files,
            index,
            plan.num_shards,
            fixed=bool(job.num_shards),
            on_duplicate=lambda duplicate: letters.add(dead_letter_for(duplicate)),
        )
        if not kept and not job.update:
            return None
        report = compress_shard(job, index, kept, plan.num_shards, plan.codebook, lambda: self.model)
        for letter in letters_of_report(report):
            letters.add(letter)
        letters.flush()
        tallies = {UNIQUE: len(kept), DUPLICATES: sum(one.count for one in kept) - len(kept)}
        # Entries that grow with the rows are on disk and need not pass between processes.
        report = {name: value for name, value in report.items() if name not in ("failures", "written")}
        return {"report": report, "tallies": tallies, "reasons": letters.by_reason()}

    def write_letters(self, part: int, num_parts: int) -> dict[str, Any]:
        """See `records.write_letters_part`."""
        return write_letters_part(part, num_parts, self.job)
