"""The Beam graph of `build_memory`: read, chunk, keep each content once, compress a shard at a time, and complete with the manifest last."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsDict, AsList, AsSingleton, PCollection, TaggedOutput
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared
from transformers.utils.logging import disable_progress_bar

from clara.artefact import MANIFEST, atomic_write, file_entry, read_manifest
from clara.backbone import load_tokenizer
from clara.checkpoint import load_checkpoint
from clara.config import Backbone, Prompts
from clara.encode import torch_threads, write_memory_shard
from clara.errors import InputError
from clara.fingerprint import Fingerprint
from clara.memory import complete_memory, shard_name
from clara.model import ClaraModel
from clara.prompts import PromptBuilder
from clara.records import Document
from pipelines.chunking import ChunkingError, Tokens, chunk_document
from pipelines.dedup import KeepFirst, Kept
from pipelines.progress import ShardProgress
from pipelines.sources import DeadLetter, Fields, Unit, clean, read_unit

DEAD_LETTERS = "dead_letters.jsonl"
OUTCOME = ".outcome.json"
_COUNTERS = "build_memory"
_FAILED, _TALLY = "failed", "tally"
FailedOutput = TaggedOutput[Literal["failed"], DeadLetter]
TallyOutput = TaggedOutput[Literal["tally"], tuple[str, int]]
_SNIPPET_CHARACTERS = 200

# What is counted; the invariants tie them together.
RECORDS, DOCUMENTS, BEYOND_LIMIT, CHUNKS, TRUNCATED, SPLIT = (
    "records read",
    "documents",
    "documents beyond limit",
    "chunks",
    "chunks truncated",
    "documents split",
)
UNIQUE, DUPLICATES = "unique chunks", "duplicate chunks dropped"


@dataclass(frozen=True)
class Job:
    """All that the workers need to know; it travels with the pipeline.

    Attributes:
        output: directory of the MEMORY, on a file system that every worker sees.
        checkpoint: CHECKPOINT with the compressor.
        backbone: folder of the LM; empty: the one that the checkpoint holds or names.
        device: `cpu` or `cuda`.
        fingerprint: of the vectors; says dtype, chunking and keys too.
        fields: names of the records' fields.
        num_shards: 0: by the number of chunks.
        codec: `float16` or `int8`.
        batch_tokens: tokens of a batch, padding included.
        limit: documents at most, the first ones; 0: all.
        max_failures: more dead letters than this fail the job; below 0: no bound.
        recipe: what determines the result.
    """

    output: str
    checkpoint: str
    backbone: str
    device: str
    fingerprint: Fingerprint
    fields: Fields
    num_shards: int
    codec: str
    batch_tokens: int
    limit: int = 0
    max_failures: int = -1
    recipe: Mapping[str, Any] = field(default_factory=dict)


def default_num_shards(num_chunks: int) -> int:
    """Shards by the number of chunks: of 256 rows, up to a thousand of them, then of more rows, up to 4,096."""
    return max(1, min(math.ceil(num_chunks / 256), 1024), math.ceil(num_chunks / 4096))


def failed(letter: DeadLetter) -> FailedOutput:
    """A dead letter, on the output for them."""
    return TaggedOutput("failed", letter)


def tally(name: str, count: int) -> TallyOutput:
    """A count, on the output for them."""
    return TaggedOutput("tally", (name, count))


class Read(beam.DoFn):
    """Unit → documents; dead letters and the number of records aside."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def process(self, unit: Unit) -> Iterator[Document | FailedOutput | TallyOutput]:
        """Read one unit."""
        count = 0
        for found in read_unit(unit, self._fields):
            count += 1
            yield failed(found) if isinstance(found, DeadLetter) else found
        Metrics.counter(_COUNTERS, "records").inc(count)
        yield tally(RECORDS, count)


class ChunkDocuments(beam.DoFn):
    """Document → (chunk id, candidate); documents that can't be chunked aside."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()
        self._tokens: Tokens | None = None

    def setup(self) -> None:
        """Load the tokenizer, once a process."""
        self._tokens = self._shared.acquire(lambda: checkpoint_tokens(self._job.checkpoint))

    def process(self, document: Document) -> Iterator[tuple[str, Kept] | FailedOutput | TallyOutput]:
        """Chunk one document."""
        assert self._tokens is not None
        limits = self._job.fingerprint
        yield tally(DOCUMENTS, 1)
        try:
            chunks = chunk_document(document, self._tokens, limits.max_tokens, limits.overlap_tokens)
        except ChunkingError as error:
            yield failed(DeadLetter(document.source, document.line, "not chunked", str(error), document.text[:_SNIPPET_CHARACTERS]))
            return
        yield tally(CHUNKS, len(chunks))
        yield tally(TRUNCATED, sum(chunk.truncated for chunk in chunks))
        yield tally(SPLIT, int(len(chunks) > 1))
        Metrics.counter(_COUNTERS, "chunks").inc(len(chunks))
        for chunk in chunks:
            yield chunk.chunk_id, Kept(chunk, document.line)


class WriteShards(beam.DoFn):
    """(Shard, its chunks) → report of the shard, compressed and written."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()

    def process(self, element: tuple[int, Any], num_shards: int) -> Iterator[dict[str, Any]]:
        """Compress and write one shard, or find it finished."""
        index, candidates = element
        job, kept = self._job, list(candidates)
        name = shard_name(index, num_shards)
        progress = ShardProgress(Path(job.output) / name, len(kept))
        progress.tell(0)
        try:
            # One thread a process: the cores are used by processes, and the last bits depend on the number of threads.
            with torch_threads(1):
                report = write_memory_shard(
                    self._model,
                    [candidate.chunk for candidate in kept],
                    job.output,
                    name,
                    fingerprint=job.fingerprint,
                    codec=job.codec,
                    batch_tokens=job.batch_tokens,
                    told=progress.tell,
                )
            progress.tell(len(kept))
        except InputError as error:
            # Told by the job as its outcome: through the runner it would come as a stack of Beam's.
            report = {"name": name, "rows": 0, "files": [], "failures": [], "reused": False, "error": str(error)}
        lines = {candidate.chunk.chunk_id: candidate.line for candidate in kept}
        report["failures"] = [{**failure, "line": lines[failure["chunk_id"]]} for failure in report["failures"]]
        Metrics.counter(_COUNTERS, "rows").inc(report["rows"])
        Metrics.counter(_COUNTERS, "shards reused" if report["reused"] else "shards compressed").inc()
        yield report

    def _model(self) -> ClaraModel:
        return self._shared.acquire(lambda: load_compressor(self._job))


class Complete(beam.DoFn):
    """Once everything is there: check that nothing was lost, write the dead letters, and the manifest last of all."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(
        self, _: None, reports: list[dict[str, Any]], failed: list[DeadLetter], tallies: dict[str, int], num_shards: int
    ) -> Iterator[dict[str, Any]]:
        """Write the outcome, which the command reads."""
        try:
            outcome: dict[str, Any] = {"counts": complete(self._job, reports, failed, tallies, num_shards)}
        except InputError as error:
            outcome = {"error": str(error)}
        atomic_write(Path(self._job.output) / OUTCOME, json.dumps(outcome))
        yield outcome


def load_compressor(job: Job) -> ClaraModel:
    """The model of a job, in eval mode."""
    disable_progress_bar()  # the library's, for weights: the job has its own
    backbone = Backbone.model_validate({"path": job.backbone, "dtype": job.fingerprint.dtype})
    return load_checkpoint(job.checkpoint, backbone, device=job.device).eval()


def checkpoint_tokens(checkpoint: str) -> Tokens:
    """What chunking needs of a checkpoint's tokenizer; `count` sees exactly what `ClaraModel.document_ids` would give."""
    prompts = Prompts.model_validate(read_manifest(checkpoint, "CHECKPOINT")["prompts"])
    tokenizer = load_tokenizer(Path(checkpoint) / "tokenizer")
    builder = PromptBuilder(tokenizer, prompts)

    def offsets(text: str) -> Sequence[tuple[int, int]]:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False)
        return list(encoded["offset_mapping"])

    return Tokens(offsets, lambda text: len(builder.text_ids(text)))


def complete(
    job: Job, reports: Sequence[dict[str, Any]], failed: Sequence[DeadLetter], tallies: Mapping[str, int], num_shards: int
) -> dict[str, Any]:
    """Complete the MEMORY and return its counts.

    Raises:
        InputError: a shard could not be written, there is no row, or more dead letters than allowed.
    """
    errors = sorted(report["error"] for report in reports if report.get("error"))
    if errors:
        raise InputError(errors[0] + (f" (and {len(errors) - 1} more shards failed)" if len(errors) > 1 else ""))
    in_shards = [
        DeadLetter(f["source"], f["line"], "not compressed", clean(f["reason"]), f["text"][:_SNIPPET_CHARACTERS])
        for report in reports
        for f in report["failures"]
    ]
    letters = sorted([*failed, *in_shards], key=lambda letter: (letter.source, letter.line, letter.reason, letter.detail))
    reasons: dict[str, int] = {}
    for letter in letters:
        reasons[letter.reason] = reasons.get(letter.reason, 0) + 1
    rows = sum(report["rows"] for report in reports)
    lines = "".join(json.dumps(asdict(letter), ensure_ascii=False) + "\n" for letter in letters)
    atomic_write(Path(job.output) / DEAD_LETTERS, lines)
    check_nothing_lost(tallies, rows, reasons)
    where = f"{Path(job.output) / DEAD_LETTERS} names each"
    if not rows:
        raise InputError(f"--input: no document could be used, failures by reason: {reasons or 'none'}; {where}")
    if 0 <= job.max_failures < len(letters):
        raise InputError(f"{len(letters)} dead letters, --max-failures allows {job.max_failures}; by reason: {reasons}; {where}")
    counts = {
        **dict(sorted(tallies.items())),
        "rows": rows,
        "dead letters": len(letters),
        "dead letters by reason": dict(sorted(reasons.items())),
    }
    complete_memory(
        job.output,
        reports,
        fingerprint=job.fingerprint,
        codec=job.codec,
        num_shards=num_shards,
        recipe=job.recipe,
        counts=counts,
        extra_files=[file_entry(job.output, DEAD_LETTERS, len(letters))],
    )
    return {**counts, "shards": len(reports), "shards reused": sum(report["reused"] for report in reports)}


def check_nothing_lost(tallies: Mapping[str, int], rows: int, reasons: Mapping[str, int]) -> None:
    """Records in = out + dropped + failed, at each stage; a difference is a bug of the job, and no MEMORY is completed then."""
    unchunked, uncompressed = reasons.get("not chunked", 0), reasons.get("not compressed", 0)
    unread = sum(reasons.values()) - unchunked - uncompressed
    for stage, came_in, went_out in (
        ("reading", tallies.get(RECORDS, 0), tallies.get(DOCUMENTS, 0) + tallies.get(BEYOND_LIMIT, 0) + unread),
        ("deduplication", tallies.get(CHUNKS, 0), tallies.get(UNIQUE, 0) + tallies.get(DUPLICATES, 0)),
        ("compression", tallies.get(UNIQUE, 0), rows + uncompressed),
    ):
        if came_in != went_out:
            raise RuntimeError(
                f"{stage} lost records: {came_in} came in, {went_out} are accounted for; tallies {dict(tallies)}, failures {dict(reasons)}"
            )


def _first_documents(documents: PCollection[Document], limit: int) -> tuple[PCollection[Document], PCollection[tuple[str, int]]]:
    """The first documents of the corpus, and a tally of those beyond."""
    chosen = (
        documents
        | "KeepFirstDocuments" >> combiners.Top.Smallest(limit, key=lambda document: (document.source, document.line))
        | "Unpack" >> beam.FlatMap(lambda found: found)
    )
    beyond = documents | "CountDocuments" >> combiners.Count.Globally() | "Beyond" >> beam.Map(lambda n: (BEYOND_LIMIT, max(0, n - limit)))
    return chosen, beyond


def _tally_duplicates(element: tuple[str, Kept]) -> list[tuple[str, int]]:
    return [(UNIQUE, 1), (DUPLICATES, element[1].count - 1)]


def _to_shard(element: tuple[str, Kept], num_shards: int) -> tuple[int, Kept]:
    return element[1].chunk.row_id % num_shards, element[1]


def add_memory_job(pipeline: beam.Pipeline, units: Sequence[Unit], job: Job) -> PCollection[dict[str, Any]]:
    """Add the whole job to a pipeline. Returns its one outcome: `{"counts": …}` or `{"error": …}`."""
    read = (
        pipeline
        | "ListUnits" >> beam.Create(list(units))
        | "SpreadUnits" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(Read(job.fields)).with_outputs(_FAILED, _TALLY, main="documents")
    )
    documents, tallies = read.documents, [read[_TALLY]]
    if job.limit:
        documents, beyond = _first_documents(documents, job.limit)
        tallies.append(beyond)
    chunked = (
        documents
        | "SpreadDocuments" >> beam.Reshuffle()
        | "Chunk" >> beam.ParDo(ChunkDocuments(job)).with_outputs(_FAILED, _TALLY, main="chunks")
    )
    unique = chunked.chunks | "KeepFirstOfEach" >> beam.CombinePerKey(KeepFirst())
    tallies += [chunked[_TALLY], unique | "TallyDuplicates" >> beam.FlatMap(_tally_duplicates)]
    if job.num_shards:
        num_shards = AsSingleton(pipeline | "FixedShards" >> beam.Create([job.num_shards]))
    else:
        num_shards = AsSingleton(unique | "CountChunks" >> combiners.Count.Globally() | "ChooseShards" >> beam.Map(default_num_shards))
    reports = (
        unique
        | "AssignShard" >> beam.Map(_to_shard, num_shards)
        | "GatherShards" >> beam.GroupByKey()
        | "CompressAndWrite" >> beam.ParDo(WriteShards(job), num_shards)
    )
    totals = tallies | "AllTallies" >> beam.Flatten() | "SumTallies" >> beam.CombinePerKey(sum)
    failed = [read[_FAILED], chunked[_FAILED]] | "AllFailures" >> beam.Flatten()
    return (
        pipeline
        | "Once" >> beam.Create([None])
        | "Complete" >> beam.ParDo(Complete(job), AsList(reports), AsList(failed), AsDict(totals), num_shards)
    )


def read_outcome(output: Path) -> dict[str, Any]:
    """Counts of a job that has run, and remove the note.

    Raises:
        InputError: the job says that it failed.
        RuntimeError: it left no word.
    """
    path = output / OUTCOME
    if not path.is_file():
        raise RuntimeError(f"{output}: the pipeline ended without an outcome and without {MANIFEST}; see the runner's log")
    outcome = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    if "error" in outcome:
        raise InputError(outcome["error"])
    return dict(outcome["counts"])
