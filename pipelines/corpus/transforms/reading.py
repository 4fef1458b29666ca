"""The beginning of a Beam graph over a corpus: read, filter and chunk units, and keep each content once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsSingleton, PCollection, TaggedOutput
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared

from clara.data.records import Document
from pipelines.corpus.census import Census
from pipelines.corpus.chunking import Tokens
from pipelines.corpus.chunks import Limits, Reading, chunk_tallies, chunks_of, documents_of
from pipelines.corpus.counts import BEYOND_LIMIT, DOCUMENTS, DUPLICATES, RECORDS, UNIQUE
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.exact_duplicates import UniqueChunk
from pipelines.corpus.splits import Unit
from pipelines.corpus.transforms.dead_letters import COUNTERS
from pipelines.corpus.transforms.duplicates import (
    KeepFirst,
    drop_near_duplicates,
    ids_of_several,
    letters_of_duplicates,
)

FAILED, TALLY = "failed", "tally"
FailedOutput = TaggedOutput[Literal["failed"], DeadLetter]
TallyOutput = TaggedOutput[Literal["tally"], tuple[str, int]]


def failed(letter: DeadLetter) -> FailedOutput:
    """A dead letter, on its output."""
    return TaggedOutput("failed", letter)


def tally(name: str, count: int) -> TallyOutput:
    """A count, on its output."""
    return TaggedOutput("tally", (name, count))


class Read(beam.DoFn):
    """Unit → documents that pass the filters; dead letters and the number of records on further outputs."""

    def __init__(self, job: Reading) -> None:
        self._job = job

    def process(self, unit: Unit) -> Iterator[Document | FailedOutput | TallyOutput]:
        """Read one unit."""
        count, census = 0, Census(unit.name, self._job.fields)
        for found in documents_of(unit, self._job, census):
            count += 1
            yield failed(found) if isinstance(found, DeadLetter) else found
        Metrics.counter(COUNTERS, "records").inc(count)
        yield tally(RECORDS, count)
        for name, number in census.tallies().items():
            yield tally(name, number)


class ChunkDocuments(beam.DoFn):
    """Document → (chunk id, candidate); dead letters and tallies on further outputs."""

    def __init__(self, limits: Limits, load_tokens: Callable[[], Tokens]) -> None:
        self._limits, self._load_tokens = limits, load_tokens
        self._shared = Shared()
        self._tokens: Tokens | None = None

    def setup(self) -> None:
        """Load the tokenizer, once a process."""
        self._tokens = self._shared.acquire(self._load_tokens)

    def process(self, document: Document) -> Iterator[tuple[str, UniqueChunk] | FailedOutput | TallyOutput]:
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
            yield chunk.chunk_id, UniqueChunk(chunk, document.line)


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


def _tally_duplicates(element: tuple[str, UniqueChunk]) -> list[tuple[str, int]]:
    return [(UNIQUE, 1), (DUPLICATES, element[1].count - 1)]


def unique_chunks(
    pipeline: beam.Pipeline, units: Sequence[Unit], job: Reading, limits: Limits, load_tokens: Callable[[], Tokens]
) -> tuple[
    PCollection[tuple[str, UniqueChunk]], list[PCollection[tuple[str, int]]], list[PCollection[DeadLetter]], AsSingleton
]:
    """Read, filter, chunk, and keep each content once.

    Returns the chunks by id, tallies, dead letters, and the example of `ids_of_several`.
    """
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
    if job.min_hash:
        documents, alike = drop_near_duplicates(documents, job.min_hash)
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
    pipeline: beam.Pipeline, unique: PCollection[tuple[str, UniqueChunk]], fixed: int, by_count: Callable[[int], int]
) -> AsSingleton:
    """The number of shards: as given, or (0) by the number of chunks."""
    if fixed:
        return AsSingleton(pipeline | "FixedShards" >> beam.Create([fixed]))
    return AsSingleton(unique | "CountChunks" >> combiners.Count.Globally() | "ChooseShards" >> beam.Map(by_count))
