"""Exact duplicates: the first chunk in the corpus stays, on every runner; each other one gets a dead letter."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

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


def letter(place: Place, document_id: str, end: int) -> DeadLetter:
    """The letter of a duplicate: whose part it was, and the chunk that stands for it.

    No snippet: its text stands in the MEMORY, under that id.
    """
    chunk_id, source, line, start = place
    detail = f"of {chunk_id} (characters {start} to {end} of the document)"
    return DeadLetter(source, line, REASON, detail, dropped=True, document_id=document_id)


def letter_of(lost: Kept) -> DeadLetter:
    """The letter of a candidate that did not win."""
    return letter((lost.chunk.chunk_id, *lost.origin), lost.chunk.document_id, lost.chunk.end)
