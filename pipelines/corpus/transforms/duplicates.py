"""Duplicates in a Beam graph: equal chunks, similar documents, document ids of several texts."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton, PCollection
from apache_beam.transforms import combiners

from clara.data.records import Document
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.document_ids import SEVERAL, TextOrigin, origin_of, shared_ids, two_that_differ
from pipelines.corpus.exact_duplicates import ChunkOrigin, UniqueChunk, dead_letter_at, first_of
from pipelines.corpus.near_duplicates import MinHashSettings, Origin, band_keys, dead_letter_for, duplicates, signature

# --- equal chunks


class KeepFirst(beam.CombineFn):
    """`first_of` as a combiner, so that equal chunks are merged before they are shuffled."""

    def create_accumulator(self) -> UniqueChunk | None:
        """Nothing yet."""
        return None

    def add_input(self, accumulator: UniqueChunk | None, element: UniqueChunk) -> UniqueChunk | None:
        """Add one."""
        return first_of((accumulator, element))

    def merge_accumulators(self, accumulators: Iterable[UniqueChunk | None]) -> UniqueChunk | None:
        """Merge partial results."""
        return first_of(accumulators)

    def extract_output(self, accumulator: UniqueChunk | None) -> UniqueChunk:
        """The first occurrence."""
        assert accumulator is not None, "a key without elements"
        return accumulator


def _candidate(element: tuple[str, UniqueChunk]) -> tuple[ChunkOrigin, tuple[str, int] | None]:
    chunk_id, kept = element
    return (chunk_id, *kept.origin), (kept.chunk.document_id, kept.chunk.end)


def _first(element: tuple[str, UniqueChunk]) -> tuple[ChunkOrigin, tuple[str, int] | None]:
    chunk_id, kept = element
    return (chunk_id, *kept.origin), None


def _lost(element: tuple[ChunkOrigin, Iterable[tuple[str, int] | None]]) -> Iterator[DeadLetter]:
    origin, found = element
    marks = list(found)
    candidates = [mark for mark in marks if mark is not None]
    # The origin of the first occurrence has one mark, and so gives one letter less.
    for document_id, end in candidates[len(marks) - len(candidates) :]:
        yield dead_letter_at(origin, document_id, end)


def letters_of_duplicates(
    candidates: PCollection[tuple[str, UniqueChunk]], unique: PCollection[tuple[str, UniqueChunk]]
) -> PCollection[DeadLetter]:
    """A dead letter for each candidate that is not the first of its content.

    Joined by origin and not by content: however often a text appears in the corpus, no group has more than two members.
    """
    origins = candidates | "PlacesOfAll" >> beam.Map(_candidate), unique | "PlacesOfFirst" >> beam.Map(_first)
    return (
        origins
        | "AllPlaces" >> beam.Flatten()
        | "GatherPlaces" >> beam.GroupByKey()
        | "LettersOfDuplicates" >> beam.FlatMap(_lost)
    )


# --- similar documents


def _bands(document: Document, min_hash: MinHashSettings) -> Iterator[tuple[bytes, tuple[Origin, bytes]]]:
    own = signature(document.text)
    for key in band_keys(own, min_hash):
        yield key, ((document.source, document.line, document.id), own.tobytes())


def _duplicates_of_bucket(
    element: tuple[bytes, Iterable[tuple[Origin, bytes]]], threshold: float
) -> Iterator[tuple[Origin, Origin]]:
    yield from duplicates(((origin, np.frombuffer(own, np.uint32)) for origin, own in element[1]), threshold)


def _by_origin(document: Document) -> tuple[Origin, Document]:
    return (document.source, document.line, document.id), document


class _Decide(beam.DoFn):
    """(Origin, document and similar origins) → the document, or its dead letter on the output `letters`."""

    def process(self, element: tuple[Origin, dict[str, Any]]) -> Iterator[Any]:
        """Decide on one document."""
        _, found = element
        like = list(found["like"])
        for document in found["documents"]:
            if like:
                yield beam.pvalue.TaggedOutput("letters", dead_letter_for(document, like[0]))
            else:
                yield document


def drop_near_duplicates(
    documents: PCollection[Document], min_hash: MinHashSettings
) -> tuple[PCollection[Document], PCollection[DeadLetter]]:
    """The kept documents, and dead letters of the others; each names the first document that it is similar to."""
    like = (
        documents
        | "Sign" >> beam.FlatMap(_bands, min_hash)
        | "GatherBuckets" >> beam.GroupByKey()
        | "CompareInBuckets" >> beam.FlatMap(_duplicates_of_bucket, min_hash.threshold)
        | "FirstLike" >> beam.CombinePerKey(min)
    )
    joined = {
        "documents": documents | "ByOrigin" >> beam.Map(_by_origin),
        "like": like,
    } | "JoinVerdicts" >> beam.CoGroupByKey()
    decided = joined | "DropNearDuplicates" >> beam.ParDo(_Decide()).with_outputs("letters", main="documents")
    return decided.documents, decided.letters


# --- document ids


def _by_id(document: Document) -> tuple[str, tuple[TextOrigin, ...]]:
    return document.id, (origin_of(document),)


def _first_text(found: Iterable[Any]) -> Any:
    return min((entry for entry in found if entry), default=None)


def _text_of(entry: Any) -> str:
    return entry[1] if entry else ""


def ids_of_several(documents: PCollection[Document]) -> tuple[PCollection[tuple[str, int]], AsSingleton]:
    """A tally of the ids that different texts share, and the first as an example (empty: there is none)."""
    pairs = (
        documents
        | "IdsOfDocuments" >> beam.Map(_by_id)
        | "TextsOfIds" >> beam.CombinePerKey(two_that_differ)
        | "SeveralTexts" >> beam.FlatMap(lambda element: shared_ids([element]))
    )
    count = (
        pairs
        | "CountSeveralTexts" >> combiners.Count.Globally()
        | "TallySeveralTexts" >> beam.Map(lambda n: (SEVERAL, n))
    )
    first = pairs | "FirstSeveralTexts" >> beam.CombineGlobally(_first_text) | "TellSeveralTexts" >> beam.Map(_text_of)
    return count, AsSingleton(first)
