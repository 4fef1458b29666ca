"""One interface for what ranks the rows of a MEMORY for questions: its own vectors, BM25, an embedding model.

To add a retriever: a class with the two methods of `Ranker`. To offer it as a source of candidates: an entry in
`clara.retrieval.pools.TEXT_RANKERS`, and the settings `from_NAME` (CONTRIBUTING.md has all places).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from clara.arrays import NO_ROW, Ids
from clara.data.questions import Question
from clara.memory.store import MemoryStore

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Queries:
    """B questions that rows are ranked for.

    Attributes:
        texts: of the questions.
        excluded: for each question, row ids that are never returned.
        vectors: `[B, M, D]`, encoded by a query reasoner; None: not encoded, for rankers that read text.
    """

    texts: Sequence[str]
    excluded: Sequence[Collection[int]]
    vectors: "Tensor | None" = None

    @classmethod
    def of(cls, questions: Sequence[Question], store: MemoryStore, vectors: "Tensor | None" = None) -> "Queries":
        """The questions, each without the rows of its excluded documents."""
        excluded = [{row for document in q.exclude_ids for row in store.rows_of(document)} for q in questions]
        return cls([q.question for q in questions], excluded, vectors)

    def part(self, begin: int, end: int) -> "Queries":
        """Those of some of the questions."""
        vectors = None if self.vectors is None else self.vectors[begin:end]
        return Queries(self.texts[begin:end], self.excluded[begin:end], vectors)


class Ranker(Protocol):
    """Ranks the rows of one MEMORY."""

    def rank(self, queries: Queries, k: int) -> list[list[int]]:
        """At most k row ids of each question, best first, none of them excluded."""
        ...

    def score(self, queries: Queries, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Scores of given rows of each question, in their order; higher is better."""
        ...


def row_lists(rows_Bk: Ids) -> list[list[int]]:
    """Rows of each question without `NO_ROW`."""
    return [[row for row in rows if row != NO_ROW] for rows in rows_Bk.tolist()]
