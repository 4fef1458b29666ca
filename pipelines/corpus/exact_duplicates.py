"""Exact duplicates: the first chunk in the corpus stays, on every runner; each other one gets a dead letter."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from clara.data.records import Chunk
from pipelines.corpus.dead_letter import DeadLetter

REASON = "duplicate"
ChunkOrigin = tuple[str, str, int, int]
"""Chunk id, source, line and start of a chunk."""


@dataclass(frozen=True)
class UniqueChunk:
    """The first chunk of its content, the line of its document, and the number of equal chunks."""

    chunk: Chunk
    line: int
    count: int = 1

    @property
    def origin(self) -> tuple[str, int, int]:
        """Source, line and start; the chunk with the smallest origin is kept."""
        return self.chunk.source, self.line, self.chunk.start


def first_of_two(one: UniqueChunk, other: UniqueChunk) -> UniqueChunk:
    """The one with the smaller origin, and the sum of both counts."""
    first = min(one, other, key=lambda kept: kept.origin)
    return UniqueChunk(first.chunk, first.line, one.count + other.count)


def first_of(candidates: Iterable[UniqueChunk | None]) -> UniqueChunk | None:
    """The candidate with the smallest origin, and the sum of all counts; order doesn't matter."""
    present = [candidate for candidate in candidates if candidate is not None]
    return functools.reduce(first_of_two, present) if present else None


def dead_letter_at(origin: ChunkOrigin, document_id: str, end: int) -> DeadLetter:
    """The dead letter of a duplicate: its document and position, and the id of the chunk that is kept.

    No snippet: the text is stored in the MEMORY under that id.
    """
    chunk_id, source, line, start = origin
    detail = f"of {chunk_id} (characters {start} to {end} of the document)"
    return DeadLetter(source, line, REASON, detail, dropped=True, document_id=document_id, kept=chunk_id)


def dead_letter_for(duplicate: UniqueChunk) -> DeadLetter:
    """The dead letter of a chunk that repeats an earlier one."""
    chunk = duplicate.chunk
    return dead_letter_at((chunk.chunk_id, *duplicate.origin), chunk.document_id, chunk.end)
