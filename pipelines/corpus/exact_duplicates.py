"""Exact duplicates: of chunks with one id, the one that stands first in the corpus stays, on every runner; each of the others has a letter."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import PCollection

from clara.data.records import Chunk
from pipelines.corpus.dead_letter import DeadLetter

REASON = "duplicate"
Place = tuple[str, str, int, int]
"""Chunk id, and origin: a candidate's own."""


@dataclass(frozen=True)
class Kept:
    """The first chunk of its content, the line that it came from, and how many there were."""

    chunk: Chunk
    line: int
    count: int = 1

    @property
    def origin(self) -> tuple[str, int, int]:
        """Place in the corpus; the smallest wins."""
        return self.chunk.source, self.line, self.chunk.start


def first_of_two(one: Kept, other: Kept) -> Kept:
    """The one with the smaller origin, and the sum of both counts."""
    first = min(one, other, key=lambda kept: kept.origin)
    return Kept(first.chunk, first.line, one.count + other.count)


def first_of(candidates: Iterable[Kept | None]) -> Kept | None:
    """The candidate with the smallest origin, and the sum of all counts; order doesn't matter."""
    present = [candidate for candidate in candidates if candidate is not None]
    return functools.reduce(first_of_two, present) if present else None


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


def letter(place: Place, document_id: str, end: int) -> DeadLetter:
    """The letter of a duplicate: whose part it was, and the chunk that stands for it. No snippet: its text stands in the MEMORY, under that id."""
    chunk_id, source, line, start = place
    detail = f"of {chunk_id} (characters {start} to {end} of the document)"
    return DeadLetter(source, line, REASON, detail, dropped=True, document_id=document_id)


def letter_of(lost: Kept) -> DeadLetter:
    """The letter of a candidate that did not win."""
    return letter((lost.chunk.chunk_id, *lost.origin), lost.chunk.document_id, lost.chunk.end)


def _candidate(element: tuple[str, Kept]) -> tuple[Place, tuple[str, int] | None]:
    chunk_id, kept = element
    return (chunk_id, *kept.origin), (kept.chunk.document_id, kept.chunk.end)


def _winner(element: tuple[str, Kept]) -> tuple[Place, tuple[str, int] | None]:
    chunk_id, kept = element
    return (chunk_id, *kept.origin), None


def _lost(element: tuple[Place, Iterable[tuple[str, int] | None]]) -> Iterator[DeadLetter]:
    place, found = element
    marks = list(found)
    candidates = [mark for mark in marks if mark is not None]
    for document_id, end in candidates[
        len(marks) - len(candidates) :
    ]:  # a place that won has its mark, and gives one letter less
        yield letter(place, document_id, end)


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
