"""What every corpus job begins with: units are read, filtered and chunked, and each content is kept once.

The steps are functions, which the local job calls without the graph.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsSingleton, PCollection, TaggedOutput
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared

from clara.config.model import Prompts
from clara.data.corpus import Fields
from clara.data.records import Chunk, Document
from clara.model.artefact import Checkpoint
from clara.model.backbone_files import load_tokenizer
from clara.model.prompts import PromptBuilder, token_spans
from clara.storage.artefact import Artefact
from clara.storage.paths import Name
from pipelines.corpus.chunking import ChunkingError, Tokens, chunk_document
from pipelines.corpus.counts import (
    BEYOND_LIMIT,
    CHUNKS,
    CUT_TOKENS,
    DOCUMENTS,
    DOCUMENTS_TRUNCATED,
    DUPLICATES,
    RECORDS,
    SPLIT,
    SPLIT_TOKENS,
    TRUNCATED,
    TRUNCATED_TOKENS,
    UNIQUE,
)
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.dead_letters import COUNTERS, SNIPPET_CHARACTERS
from pipelines.corpus.document_ids import ids_of_several
from pipelines.corpus.exact_duplicates import KeepFirst, Kept, letters_of_duplicates
from pipelines.corpus.filters import Filters, why_dropped
from pipelines.corpus.near_duplicates import Likeness, drop_near_duplicates
from pipelines.corpus.readers import read_unit
from pipelines.corpus.splits import Unit

FAILED, TALLY = "failed", "tally"
FailedOutput = TaggedOutput[Literal["failed"], DeadLetter]
TallyOutput = TaggedOutput[Literal["tally"], tuple[str, int]]


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
            snippet = found.text[:SNIPPET_CHARACTERS]
            yield DeadLetter(found.source, found.line, *why, snippet, dropped=True, document_id=found.id)
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
        snippet = document.text[:SNIPPET_CHARACTERS]
        return DeadLetter(document.source, document.line, "not chunked", str(error), snippet, document_id=document.id)


def chunk_tallies(document: Document, chunks: Sequence[Chunk], tokens: Tokens) -> list[tuple[str, int]]:
    """What is counted of a document's chunks. Of texts nothing is ever cut off: what one chunk leaves stands in the next; of titles the end is."""
    truncated = [chunk.num_tokens for chunk in chunks if chunk.truncated]
    split = [chunk.num_tokens for chunk in chunks] if len(chunks) > 1 else []
    title = chunks[0].title
    return [
        (CHUNKS, len(chunks)),
        (TRUNCATED, len(truncated)),
        (DOCUMENTS_TRUNCATED, int(bool(truncated))),
        (TRUNCATED_TOKENS, sum(truncated)),
        (CUT_TOKENS, tokens.count(document.title) - tokens.count(title) if title != document.title else 0),
        (SPLIT, int(bool(split))),
        (SPLIT_TOKENS, sum(split)),
    ]


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
        for name, count in chunk_tallies(document, chunks, self._tokens):
            yield tally(name, count)
        Metrics.counter(COUNTERS, "chunks").inc(len(chunks))
        for chunk in chunks:
            yield chunk.chunk_id, Kept(chunk, document.line)


def checkpoint_tokens(source: Name | Artefact) -> Tokens:
    """What chunking needs of a checkpoint's tokenizer; `count` sees exactly what `ClaraModel.document_ids` would give."""
    checkpoint = Checkpoint.open(source)
    return folder_tokens(checkpoint.folder / "tokenizer", checkpoint.prompts)


def folder_tokens(folder: str | os.PathLike[str], prompts: Prompts) -> Tokens:
    """What chunking needs of the tokenizer in a folder."""
    builder = PromptBuilder(load_tokenizer(folder), prompts)
    # Whether special tokens are split is a state of the tokenizer, set by each call: threads share these two, each of
    # which is always called alike.
    splitting = load_tokenizer(folder)

    return Tokens(lambda text: token_spans(splitting, text), lambda text: len(builder.text_ids(text)))


def _first_documents(
    documents: PCollection[Document], limit: int
) -> tuple[PCollection[Document], PCollection[tuple[str, int]]]:
    """The first documents of the corpus, and a tally of those beyond."""
    chosen = (
        documents
        | "KeepFirstDocuments" >> combiners.Top.Smallest(limit, key=lambda document: (document.source, document.line))
        | "Unpack" >> beam.FlatMap(lambda found: found)
    )
    beyond = (
        documents
        | "CountDocuments" >> combiners.Count.Globally()
        | "Beyond" >> beam.Map(lambda n: (BEYOND_LIMIT, max(0, n - limit)))
    )
    return chosen, beyond


def _tally_duplicates(element: tuple[str, Kept]) -> list[tuple[str, int]]:
    return [(UNIQUE, 1), (DUPLICATES, element[1].count - 1)]


def unique_chunks(
    pipeline: beam.Pipeline, units: Sequence[Unit], job: Reading, limits: Limits, load_tokens: Callable[[], Tokens]
) -> tuple[
    PCollection[tuple[str, Kept]], list[PCollection[tuple[str, int]]], list[PCollection[DeadLetter]], AsSingleton
]:
    """Read, filter, chunk, and keep each content once. Returns the chunks by id, tallies, dead letters, and the example of `ids_of_several`."""
    read = (
        pipeline
        | "ListUnits" >> beam.Create(list(units))
        | "SpreadUnits" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(Read(job)).with_outputs(FAILED, TALLY, main="documents")
    )
    documents, tallies = read.documents, [read[TALLY]]
    if job.limit:
        documents, beyond = _first_documents(documents, job.limit)
        tallies.append(beyond)
    letters = [read[FAILED]]
    if job.likeness:
        documents, alike = drop_near_duplicates(documents, job.likeness)
        letters.append(alike)
    several, first_of_several = ids_of_several(documents)
    tallies.append(several)
    chunked = (
        documents
        | "SpreadDocuments" >> beam.Reshuffle()
        | "Chunk" >> beam.ParDo(ChunkDocuments(limits, load_tokens)).with_outputs(FAILED, TALLY, main="chunks")
    )
    letters.append(chunked[FAILED])
    unique = chunked.chunks | "KeepFirstOfEach" >> beam.CombinePerKey(KeepFirst())
    letters.append(letters_of_duplicates(chunked.chunks, unique))
    tallies += [chunked[TALLY], unique | "TallyDuplicates" >> beam.FlatMap(_tally_duplicates)]
    return unique, tallies, letters, first_of_several


def chosen_num_shards(
    pipeline: beam.Pipeline, unique: PCollection[tuple[str, Kept]], fixed: int, by_count: Callable[[int], int]
) -> AsSingleton:
    """The number of shards: as given, or (0) by the number of chunks."""
    if fixed:
        return AsSingleton(pipeline | "FixedShards" >> beam.Create([fixed]))
    return AsSingleton(unique | "CountChunks" >> combiners.Count.Globally() | "ChooseShards" >> beam.Map(by_count))
