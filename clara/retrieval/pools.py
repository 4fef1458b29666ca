"""Pools of questions: rows that a question names, lists merged, and what fills a pool up."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from clara.data.questions import Question
from clara.memory.store import MemoryStore


def interleave(*lists: Sequence[int]) -> list[int]:
    """The lists' entries in turn, best first, each entry once."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*lists))
    return list(dict.fromkeys(row for row in turns if row is not None))


def fill(
    own: Sequence[int], others: Sequence[Sequence[int]], banned: Collection[int], size: int, dice: torch.Generator
) -> list[int]:
    """A question's own candidates, then those of the other questions in random order, `size` in all or as many as there are."""
    pool = list(own[:size])
    if len(pool) < size:
        present = {*pool, *banned}
        rest = [row for row in dict.fromkeys(itertools.chain.from_iterable(others)) if row not in present]
        order = torch.randperm(len(rest), generator=dice).tolist()
        pool += [rest[i] for i in order[: size - len(pool)]]
    return pool


@dataclass(frozen=True)
class Known:
    """Rows of MEMORY that a question names: known positives, banned ones, and its published pool."""

    positive: tuple[int, ...]
    banned: frozenset[int]
    pool: tuple[int, ...]

    @classmethod
    def of(cls, question: Question, store: MemoryStore) -> "Known":
        """The rows of the question's documents. A document that is kept out is no positive either."""
        banned = frozenset(row for document in question.exclude_ids for row in store.rows_of(document))

        def rows(documents: Sequence[str]) -> tuple[int, ...]:
            return tuple(row for document in documents for row in store.rows_of(document) if row not in banned)

        return cls(rows(question.positive_ids), banned, rows(question.candidate_ids))
