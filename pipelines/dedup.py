"""Exact duplicates: of chunks with one id, the one that stands first in the corpus stays, on every runner."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam

from clara.records import Chunk


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
