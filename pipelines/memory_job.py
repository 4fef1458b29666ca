"""The Beam graph of `build_memory`: read, chunk, keep each content once, compress a shard at a time, and complete with the manifest last."""

import functools
import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsDict, AsList, AsSingleton, PCollection, TaggedOutput
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared
from transformers.utils.logging import disable_progress_bar

from clara.artefact import atomic_write, read_manifest
from clara.backbone import load_tokenizer
from clara.checkpoint import load_checkpoint
from clara.codec import pq_width
from clara.config import Backbone, Prompts
from clara.encode import make_codebook, torch_threads, write_memory_shard
from clara.errors import InputError
from clara.fingerprint import check, of_model
from clara.localise import localised
from clara.memory import shard_name
from clara.model import ClaraModel
from clara.product_quantiser import load_codebook, num_sampled, sample_order
from clara.prompts import PromptBuilder
from clara.records import Chunk, Document
from clara.storage import StorageError, join
from clara.update import write_overlay
from pipelines.chunking import ChunkingError, Tokens, chunk_document
from pipelines.dataflow import apart, on_gpu
from pipelines.dead_letters import COUNTERS, SNIPPET_CHARACTERS, count_reasons, failures, write_letters
from pipelines.dedup import KeepFirst, Kept
from pipelines.filters import Filters, why_dropped
from pipelines.memory_outcome import (
    BEYOND_LIMIT,
    CHUNKS,
    DOCUMENTS,
    DUPLICATES,
    OUTCOME,
    RECORDS,
    SPLIT,
    TRUNCATED,
    UNIQUE,
    Job,
    check_sees,
    complete,
)
from pipelines.near_duplicates import Likeness, drop_near_duplicates
from pipelines.progress import ShardProgress
from pipelines.sources import read_unit
from pipelines.units import DeadLetter, Fields, Unit

_FAILED, _TALLY = "failed", "tally"
FailedOutput = TaggedOutput[Literal["failed"], DeadLetter]
TallyOutput = TaggedOutput[Literal["tally"], tuple[str, int]]


def default_num_shards(num_chunks: int) -> int:
    """Shards by the number of chunks: of 256 rows at most, up to 1,024 of them, then of more rows, up to 4,096.

    A power of two, so that a corpus that grew a little has the same shards, and that its chunks can be put aside before they are counted.
    """
    wanted = max(1, min(math.ceil(num_chunks / 256), 1024), math.ceil(num_chunks / 4096))
    return 1 << (wanted - 1).bit_length()


def failed(letter: DeadLetter) -> FailedOutput:
    """A dead letter, on the output for them."""
    return TaggedOutput("failed", letter)


def tally(name: str, count: int) -> TallyOutput:
    """A count, on the output for them."""
    return TaggedOutput("tally", (name, count))


class Reading(Protocol):
    """What a job asks of the records that it reads; of `limit` and `likeness` see `Job`."""

    @property
    def fields(self) -> Fields: ...  # noqa: D102

    @property
    def filters(self) -> Filters: ...  # noqa: D102

    @property
    def limit(self) -> int: ...  # noqa: D102

    @property
    def likeness(self) -> Likeness | None: ...  # noqa: D102


class Limits(Protocol):
    """How long a chunk may be, in tokens."""

    @property
    def max_tokens(self) -> int: ...  # noqa: D102

    @property
    def overlap_tokens(self) -> int: ...  # noqa: D102


def documents_of(unit: Unit, job: Reading) -> Iterator[Document | DeadLetter]:
    """One of a unit's records after the other: the document, where it passes the filters, else its letter."""
    for found in read_unit(unit, job.fields):
        if isinstance(found, Document) and (why := why_dropped(found, job.filters)):
            yield DeadLetter(found.source, found.line, *why, found.text[:SNIPPET_CHARACTERS], dropped=True)
        else:
            yield found


class Read(beam.DoFn):
    """Unit → documents that pass the filters; dead letters and the number of records aside."""

    def __init__(self, job: Reading) -> None:
        self._job = job

    def process(self, unit: Unit) -> Iterator[Document | FailedOutput | TallyOutput]:
        """Read one unit."""
        count = 0
        for found in documents_of(unit, self._job):
            count += 1
            yield failed(found) if isinstance(found, DeadLetter) else found
        Metrics.counter(COUNTERS, "records").inc(count)
        yield tally(RECORDS, count)


def chunks_of(document: Document, tokens: Tokens, limits: Limits) -> list[Chunk] | DeadLetter:
    """The chunks of a document, or its letter."""
    try:
        return chunk_document(document, tokens, limits.max_tokens, limits.overlap_tokens)
    except ChunkingError as error:
        return DeadLetter(document.source, document.line, "not chunked", str(error), document.text[:SNIPPET_CHARACTERS])


def chunk_tallies(chunks: Sequence[Chunk]) -> list[tuple[str, int]]:
    """What is counted of a document's chunks."""
    return [(CHUNKS, len(chunks)), (TRUNCATED, sum(chunk.truncated for chunk in chunks)), (SPLIT, int(len(chunks) > 1))]


class ChunkDocuments(beam.DoFn):
    """Document → (chunk id, candidate); documents that can't be chunked aside."""

    def __init__(self, limits: Limits, load_tokens: Callable[[], Tokens]) -> None:
        self._limits, self._load_tokens = limits, load_tokens
        self._shared = Shared()
        self._tokens: Tokens | None = None

    def setup(self) -> None:
        """Load the tokenizer, once a process."""
        self._tokens = self._shared.acquire(self._load_tokens)

    def process(self, document: Document) -> Iterator[tuple[str, Kept] | FailedOutput | TallyOutput]:
        """Chunk one document."""
        assert self._tokens is not None
        yield tally(DOCUMENTS, 1)
        chunks = chunks_of(document, self._tokens, self._limits)
        if isinstance(chunks, DeadLetter):
            yield failed(chunks)
            return
        for name, count in chunk_tallies(chunks):
            yield tally(name, count)
        Metrics.counter(COUNTERS, "chunks").inc(len(chunks))
        for chunk in chunks:
            yield chunk.chunk_id, Kept(chunk, document.line)


class WriteShards(beam.DoFn):
    """(Shard, its chunks) → report of the shard, compressed and written."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()

    def process(self, element: tuple[int, Any], num_shards: int, codebook: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        """Compress and write one shard, or find it finished; the codebook, if there is to be one, lies in MEMORY by now."""
        index, candidates = element
        yield self.written(index, [candidate for candidate in candidates if candidate is not None], num_shards, codebook)

    def written(self, index: int, kept: Sequence[Kept], num_shards: int, codebook: dict[str, Any] | None) -> dict[str, Any]:
        """The report of one shard that holds these, once it is on disk."""
        name = shard_name(index, num_shards)
        progress = ShardProgress(self._job.output, name, len(kept))
        progress.tell(0)
        try:
            if codebook and "error" in codebook:
                raise InputError(codebook["error"])
            # One thread a process: the cores are used by processes, and the last bits depend on the number of threads.
            with torch_threads(1):
                report = self._write(index, name, [candidate.chunk for candidate in kept], progress)
            progress.tell(len(kept))
        except StorageError:
            raise  # not shard by shard: where the store is away, the outcome could not be told either
        except InputError as error:
            # Told by the job as its outcome: through the runner it would come as a stack of Beam's.
            report = {"name": name, "rows": 0, "files": [], "failures": [], "reused": False, "error": str(error)}
        lines = {candidate.chunk.chunk_id: candidate.line for candidate in kept}
        report["failures"] = [{**failure, "line": lines[failure["chunk_id"]]} for failure in report["failures"]]
        Metrics.counter(COUNTERS, "rows").inc(report["rows"])
        Metrics.counter(COUNTERS, "shards reused" if report["reused"] else "shards compressed").inc()
        return report

    def _write(self, index: int, name: str, chunks: list[Chunk], progress: ShardProgress) -> dict[str, Any]:
        job = self._job
        if job.update:
            return write_overlay(
                self._model,
                chunks,
                job.update,
                index,
                job.output,
                fingerprint=job.fingerprint,
                batch_tokens=job.batch_tokens,
                told=progress.tell,
            )
        width, limits = pq_width(job.codec), job.fingerprint
        return write_memory_shard(
            self._model,
            chunks,
            job.output,
            name,
            fingerprint=job.fingerprint,
            codec=job.codec,
            batch_tokens=job.batch_tokens,
            codebook=load_codebook(job.output, width, limits.hidden_size) if width else None,
            told=progress.tell,
        )

    def _model(self) -> ClaraModel:
        return self._shared.acquire(lambda: load_compressor(self._job))


def trained_codebook(job: Job, sample: Sequence[Kept]) -> dict[str, Any] | None:
    """The manifest entry of the codebook trained on a sample, or `{"error": …}`; None where the codec needs none."""
    try:
        with torch_threads(1):
            return make_codebook(
                lambda: load_compressor(job),
                [kept.chunk for kept in sample],
                job.output,
                fingerprint=job.fingerprint,
                codec=job.codec,
                batch_tokens=job.batch_tokens,
            )
    except StorageError:
        raise
    except InputError as error:
        return {"error": str(error)}


class Complete(beam.DoFn):
    """Once everything is there: check that nothing was lost, and write the manifest last of all."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(
        self,
        _: None,
        reports: list[dict[str, Any]],
        letter_files: list[dict[str, Any]],
        reasons: dict[tuple[bool, str], int],
        tallies: dict[str, int],
        num_shards: int,
        codebook: dict[str, Any] | None,
    ) -> Iterator[dict[str, Any]]:
        """Write the outcome, which the command reads."""
        try:
            outcome: dict[str, Any] = {"counts": complete(self._job, reports, letter_files, reasons, tallies, num_shards, codebook)}
        except StorageError:
            raise
        except InputError as error:
            outcome = {"error": str(error)}
        atomic_write(join(self._job.output, OUTCOME), json.dumps(outcome))
        yield outcome


def load_compressor(job: Job) -> ClaraModel:
    """The model of a job, in eval mode.

    Raises:
        InputError: what lies at its path on this machine is another than where the job was submitted.
    """
    disable_progress_bar()  # the library's, for weights: the job has its own
    backbone = Backbone.model_validate({"path": job.backbone, "dtype": job.fingerprint.dtype})
    model = load_checkpoint(job.checkpoint, backbone, device=job.device).eval()
    wanted = job.fingerprint
    limits = {"max_tokens": wanted.max_tokens, "overlap_tokens": wanted.overlap_tokens}
    found = of_model(model, **limits, key_size=wanted.key_size, key_seed=wanted.key_seed)
    check([wanted], found, f"--checkpoint {job.checkpoint} on {socket.gethostname()}")
    return model


def _tokens_of(job: Job) -> Tokens:
    check_sees(job)
    return checkpoint_tokens(job.checkpoint)


def checkpoint_tokens(checkpoint: str) -> Tokens:
    """What chunking needs of a checkpoint's tokenizer; `count` sees exactly what `ClaraModel.document_ids` would give."""
    prompts = Prompts.model_validate(read_manifest(checkpoint, "CHECKPOINT")["prompts"])
    return folder_tokens(localised(checkpoint, "CHECKPOINT") / "tokenizer", prompts)


def folder_tokens(folder: str | os.PathLike[str], prompts: Prompts) -> Tokens:
    """What chunking needs of the tokenizer in a folder."""
    builder = PromptBuilder(load_tokenizer(folder), prompts)
    # Whether special tokens are split is a state of the tokenizer, set by each call: threads share these two, each of which is always called alike.
    splitting = load_tokenizer(folder)

    def offsets(text: str) -> Sequence[tuple[int, int]]:
        encoded = splitting(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False)
        return list(encoded["offset_mapping"])

    return Tokens(offsets, lambda text: len(builder.text_ids(text)))


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


def _to_shard(element: tuple[str, Kept], num_shards: int) -> tuple[int, Kept | None]:
    return element[1].chunk.row_id % num_shards, element[1]


def _to_empty_shard(index: int) -> tuple[int, Kept | None]:
    return index, None


def _codebook(pipeline: beam.Pipeline, unique: PCollection[tuple[str, Kept]], job: Job) -> PCollection[dict[str, Any] | None]:
    """The codebook's manifest entry, once it lies in MEMORY; an update keeps the older version's."""
    if job.update or not pq_width(job.codec):
        return pipeline | "NoCodebook" >> beam.Create([None])
    size, hint = num_sampled(job.fingerprint.num_memory_tokens), job.accelerator
    sample = (
        unique
        | "Contents" >> beam.Values()
        | "SampleChunks" >> combiners.Top.Smallest(size, key=lambda kept: sample_order(kept.chunk.row_id))
    )
    trained = apart(sample, hint, "SampleToGPU") | "TrainCodebook" >> on_gpu(beam.Map(lambda sample: trained_codebook(job, sample)), hint)
    return apart(trained, hint, "CodebookFromGPU")


def unique_chunks(
    pipeline: beam.Pipeline, units: Sequence[Unit], job: Reading, limits: Limits, load_tokens: Callable[[], Tokens]
) -> tuple[PCollection[tuple[str, Kept]], list[PCollection[tuple[str, int]]], list[PCollection[DeadLetter]]]:
    """Read, filter, chunk, and keep each content once. Returns the chunks by id, tallies, and dead letters."""
    read = (
        pipeline
        | "ListUnits" >> beam.Create(list(units))
        | "SpreadUnits" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(Read(job)).with_outputs(_FAILED, _TALLY, main="documents")
    )
    documents, tallies = read.documents, [read[_TALLY]]
    if job.limit:
        documents, beyond = _first_documents(documents, job.limit)
        tallies.append(beyond)
    letters = [read[_FAILED]]
    if job.likeness:
        documents, alike = drop_near_duplicates(documents, job.likeness)
        letters.append(alike)
    chunked = (
        documents
        | "SpreadDocuments" >> beam.Reshuffle()
        | "Chunk" >> beam.ParDo(ChunkDocuments(limits, load_tokens)).with_outputs(_FAILED, _TALLY, main="chunks")
    )
    letters.append(chunked[_FAILED])
    unique = chunked.chunks | "KeepFirstOfEach" >> beam.CombinePerKey(KeepFirst())
    tallies += [chunked[_TALLY], unique | "TallyDuplicates" >> beam.FlatMap(_tally_duplicates)]
    return unique, tallies, letters


def add_memory_job(pipeline: beam.Pipeline, units: Sequence[Unit], job: Job) -> PCollection[dict[str, Any]]:
    """Add the whole job to a pipeline. Returns its one outcome: `{"counts": …}` or `{"error": …}`."""
    unique, tallies, letters = unique_chunks(pipeline, units, job, job.fingerprint, functools.partial(_tokens_of, job))
    if job.num_shards:
        num_shards = AsSingleton(pipeline | "FixedShards" >> beam.Create([job.num_shards]))
    else:
        num_shards = AsSingleton(unique | "CountChunks" >> combiners.Count.Globally() | "ChooseShards" >> beam.Map(default_num_shards))
    codebook = AsSingleton(_codebook(pipeline, unique, job))
    assigned = [unique | "AssignShard" >> beam.Map(_to_shard, num_shards)]
    if job.update:
        # A shard of which the corpus has nothing any more is a change too.
        assigned.append(pipeline | "ListShards" >> beam.Create(range(job.num_shards)) | "VisitShards" >> beam.Map(_to_empty_shard))
    compress = on_gpu(beam.ParDo(WriteShards(job), num_shards, codebook), job.accelerator)
    written = assigned | "AllShards" >> beam.Flatten() | "GatherShards" >> beam.GroupByKey() | "CompressAndWrite" >> compress
    reports = apart(written, job.accelerator, "ReportsFromGPU")
    totals = tallies | "AllTallies" >> beam.Flatten() | "SumTallies" >> beam.CombinePerKey(sum)
    all_letters = [*letters, failures(reports)] | "AllLetters" >> beam.Flatten()
    files, reasons = write_letters(all_letters, job.output), count_reasons(all_letters)
    return (
        pipeline
        | "Once" >> beam.Create([None])
        | "Complete" >> beam.ParDo(Complete(job), AsList(reports), AsList(files), AsDict(reasons), AsDict(totals), num_shards, codebook)
    )
