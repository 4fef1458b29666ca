"""Duplicates in a Beam graph: equal chunks, documents that are alike, document ids of several texts."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton, PCollection
from apache_beam.transforms import combiners

from clara.data.records import Document
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.document_ids import SEVERAL, Place, content_digest, example, two_that_differ
from pipelines.corpus.exact_duplicates import Kept, first_of
from pipelines.corpus.exact_duplicates import Place as ChunkPlace
from pipelines.corpus.exact_duplicates import letter as letter_of_duplicate
from pipelines.corpus.near_duplicates import Likeness, Origin, band_keys, letter, losers, signature

# --- equal chunks


class KeepFirst(beam.CombineFn):
    """`first_of` as a combiner, so that ten thousand equal chunks are one before they are shuffled."""

    def create_accumulator(self) -> Kept | None:
        """Nothing yet."""
        return None

    def add_input(self, accumulator: Kept | None, element: Kept) -> Kept | None:
        """Add one."""
        return first_of((accumulator, element))

    def merge_accumulators(self, accumulators: Iterable[Kept | None]) -> Kept | None:
        """Merge partial winners."""
        return first_of(accumulators)

    def extract_output(self, accumulator: Kept | None) -> Kept:
        """The winner."""
        assert accumulator is not None, "a key without elements"
        return accumulator


def _candidate(element: tuple[str, Kept]) -> tuple[ChunkPlace, tuple[str, int] | None]:
    chunk_id, kept = element
    return (chunk_id, *kept.origin), (kept.chunk.document_id, kept.chunk.end)


def _winner(element: tuple[str, Kept]) -> tuple[ChunkPlace, tuple[str, int] | None]:
    chunk_id, kept = element
    return (chunk_id, *kept.origin), None


def _lost(element: tuple[ChunkPlace, Iterable[tuple[str, int] | None]]) -> Iterator[DeadLetter]:
    place, found = element
    marks = list(found)
    candidates = [mark for mark in marks if mark is not None]
    for document_id, end in candidates[
        len(marks) - len(candidates) :
    ]:  # a place that won has its mark, and gives one letter less
        yield letter_of_duplicate(place, document_id, end)


def letters_of_duplicates(
    candidates: PCollection[tuple[str, Kept]], unique: PCollection[tuple[str, Kept]]
) -> PCollection[DeadLetter]:
    """A letter for each candidate that is not the one of its content that stays.

    Joined by place and not by content: however often a text stands in the corpus, no group has more than two members.
    """
    places = candidates | "PlacesOfAll" >> beam.Map(_candidate), unique | "PlacesOfFirst" >> beam.Map(_winner)
    return (
        places
        | "AllPlaces" >> beam.Flatten()
        | "GatherPlaces" >> beam.GroupByKey()
        | "LettersOfDuplicates" >> beam.FlatMap(_lost)
    )


# --- documents that are alike


def _bands(document: Document, likeness: Likeness) -> Iterator[tuple[bytes, tuple[Origin, bytes]]]:
    own = signature(document.text)
    for key in band_keys(own, likeness):
        yield key, ((document.source, document.line), own.tobytes())


def _losers_of_bucket(
    element: tuple[bytes, Iterable[tuple[Origin, bytes]]], threshold: float
) -> Iterator[tuple[Origin, Origin]]:
    yield from losers(((origin, np.frombuffer(own, np.uint32)) for origin, own in element[1]), threshold)


def _by_origin(document: Document) -> tuple[Origin, Document]:
    return (document.source, document.line), document


class _Decide(beam.DoFn):
    """(Origin, its document and what it is like) → the document, or its letter aside."""

    def process(self, element: tuple[Origin, dict[str, Any]]) -> Iterator[Any]:
        """Decide on one document."""
        _, found = element
        like = list(found["like"])
        for document in found["documents"]:
            if like:
                yield beam.pvalue.TaggedOutput("letters", letter(document, like[0]))
            else:
                yield document


def drop_near_duplicates(
    documents: PCollection[Document], likeness: Likeness
) -> tuple[PCollection[Document], PCollection[DeadLetter]]:
    """The documents that stay, and letters of the others; each names the first document that drops it."""
    like = (
        documents
        | "Sign" >> beam.FlatMap(_bands, likeness)
        | "GatherBuckets" >> beam.GroupByKey()
        | "CompareInBuckets" >> beam.FlatMap(_losers_of_bucket, likeness.threshold)
        | "FirstLike" >> beam.CombinePerKey(min)
    )
    joined = {
        "documents": documents | "ByOrigin" >> beam.Map(_by_origin),
        "like": like,
    } | "JoinVerdicts" >> beam.CoGroupByKey()
    decided = joined | "DropNearDuplicates" >> beam.ParDo(_Decide()).with_outputs("letters", main="documents")
    return decided.documents, decided.letters


# --- document ids


def _by_id(document: Document) -> tuple[str, tuple[Place, ...]]:
    return document.id, ((document.source, document.line, content_digest(document).hex()),)


def _pair(element: tuple[str, tuple[Place, ...]]) -> list[tuple[tuple[str, int], str]]:
    document_id, places = element
    if len(places) < 2:
        return []
    first, other = places
    return [(first[:2], example(document_id, first[:2], other[:2]))]


def _first_text(found: Iterable[Any]) -> Any:
    return min((entry for entry in found if entry), default=None)


def _text_of(entry: Any) -> str:
    return entry[1] if entry else ""


def ids_of_several(documents: PCollection[Document]) -> tuple[PCollection[tuple[str, int]], AsSingleton]:
    """A tally of the ids that stand for several texts, and the first as an example (empty: there is none)."""
    pairs = (
        documents
        | "IdsOfDocuments" >> beam.Map(_by_id)
        | "TextsOfIds" >> beam.CombinePerKey(two_that_differ)
        | "SeveralTexts" >> beam.FlatMap(_pair)
    )
    count = (
        pairs
        | "CountSeveralTexts" >> combiners.Count.Globally()
        | "TallySeveralTexts" >> beam.Map(lambda n: (SEVERAL, n))
    )
    first = pairs | "FirstSeveralTexts" >> beam.CombineGlobally(_first_text) | "TellSeveralTexts" >> beam.Map(_text_of)
    return count, AsSingleton(first)
