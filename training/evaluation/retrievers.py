"""What an evaluation asks of a `Ranker`: two rankings of rows for each question, best first.

One is over the whole MEMORY, one within the question's pool.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from clara.data.questions import Question
from clara.memory.store import MemoryStore
from clara.retrieval.ranker import Queries, Ranker
from clara.storage.manifest import hash_of

NO_NAMES: Mapping[int, str] = MappingProxyType({})
DEPTH = 100
"""Rows ranked over the whole MEMORY: what comes later counts as not found."""
_HASHED_DOCUMENTS = 20_000  # each of which is hashed for each question; of more, places are drawn


@dataclass(frozen=True)
class Rankings:
    """Rows of one question, best first: over the whole MEMORY (cut at `DEPTH`), and of its whole pool, with scores."""

    index: tuple[int, ...]
    pool: tuple[int, ...]
    pool_scores: tuple[float, ...] = ()


def rank_and_score(
    ranker: Ranker, queries: Queries, pools: Sequence[Sequence[int]], store: MemoryStore
) -> list[Rankings]:
    """Two rankings of each question: rows of the whole MEMORY, and the rows of its pool."""
    found = ranker.rank(queries, min(DEPTH, len(store)))
    scores = ranker.score(queries, pools)
    return [
        ranked(tuple(rows), dict(zip(pool, values, strict=True)))
        for rows, pool, values in zip(found, pools, scores, strict=True)
    ]


def ranked(index: tuple[int, ...], pool: Mapping[int, float]) -> Rankings:
    """Rankings of rows that are in order already, and of a pool by its scores; ties by row id."""
    order = sorted(pool, key=lambda row: (-pool[row], row))
    return Rankings(index, tuple(order), tuple(pool[row] for row in order))


class Corpus:
    """Which document a row of a MEMORY belongs to, and back."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.documents = sorted(set(store.document_ids))

    def rows(self, documents: Collection[str]) -> list[int]:
        """Rows of documents, each once, in the documents' order; documents that are not in MEMORY have none."""
        return list(dict.fromkeys(row for document in documents for row in self.store.rows_of(document)))

    def ranked_documents(self, rows: Sequence[int], names: Mapping[int, str] = NO_NAMES) -> list[str]:
        """Documents of ranked rows: one with several chunks has the rank of its best chunk.

        Rows in `names` count as the documents there, see `judged`.
        """
        own = self._documents_of(rows)
        return list(dict.fromkeys(names.get(row) or document for row, document in zip(rows, own, strict=True)))

    def _documents_of(self, rows: Sequence[int]) -> list[str]:
        """The document of each row."""
        positions = np.searchsorted(self.store.row_ids, np.asarray(rows, np.int64)).tolist()
        return [self.store.document_ids[position] for position in positions]

    def judged(self, question: Question) -> tuple[Question, dict[int, str]]:
        """The question as MEMORY can answer it, and the positive that each right row counts as.

        A row counts as a positive whose text it holds, under whatever id it is stored: of equal texts MEMORY keeps one.
        Positives that are the same rows count as one, the first, with the highest of their grades and the lowest of
        their hops. Without duplicates the question stays as it is, and rows count as the documents that they are of.
        """
        names: dict[int, str] = {}
        for document in question.positive_ids:
            for row in self.store.rows_of(document):
                names.setdefault(row, document)
        grades: dict[str, float] = {}
        hops: dict[str, int] = {}
        given = dict(zip(question.positive_ids, question.positive_grades, strict=False))
        known = dict(zip(question.positive_ids, question.positive_hops, strict=False))
        for document in question.positive_ids:
            rows = self.store.rows_of(document)
            counts_as = document if not rows or document in map(names.get, rows) else names[rows[0]]
            grades[counts_as] = max(grades.get(counts_as, 0.0), given.get(document, 0.0))
            hops[counts_as] = min((hop for hop in (hops.get(counts_as, 0), known.get(document, 0)) if hop), default=0)
        if len(grades) == len(question.positive_ids):
            return question, names
        changed = dataclasses.replace(
            question,
            positive_ids=tuple(grades),
            positive_grades=tuple(grades.values()) if question.positive_grades else (),
            positive_hops=tuple(hops.values()) if question.positive_hops else (),
        )
        return changed, names

    def document(self, row: int) -> str:
        """The document of a row."""
        return self._documents_of([row])[0]

    def pool(self, question: Question, size: int) -> tuple[str, ...]:
        """Document ids of a question's fixed pool.

        The one that it was published with, or else its positives and others of the corpus: the same ones at every call,
        for every system, in an order that hashes give. Published pools may have the right ones in front, also in
        QUESTIONS that others wrote.
        """
        documents = dict.fromkeys(question.candidate_ids)
        if not documents:
            named = (*question.positive_ids, *question.exclude_ids)
            closed = {*named, *self._documents_of(self.rows(named))}
            others = self._others(question.question_id, closed, size - len(question.positive_ids))
            documents = dict.fromkeys([*question.positive_ids, *others])
        return tuple(sorted(documents, key=lambda d: hash_of(["order", question.question_id, d])))

    def _others(self, question_id: str, closed: Collection[str], number: int) -> list[str]:
        """So many documents, or all there are, that are not closed, drawn by the question's id.

        Of a small corpus those whose hash with the id is lowest, of a large one those at places that hashes give: its
        documents are too many to hash each for every question.
        """
        if number <= 0:
            return []
        if len(self.documents) <= _HASHED_DOCUMENTS:
            open_documents = (d for d in self.documents if d not in closed)
            return heapq.nsmallest(number, open_documents, key=lambda d: hash_of([question_id, d]))
        drawn, wanted = dict[str, None](), min(number, len(self.documents) - len(closed))
        for turn in itertools.count():
            if len(drawn) >= wanted:
                break
            document = self.documents[int(hash_of([question_id, turn])[:16], 16) % len(self.documents)]
            if document not in closed:
                drawn[document] = None
        return list(drawn)


@dataclass(frozen=True)
class Selection:
    """Rows that the generator reads in each condition; None where a question does not allow it."""

    index: tuple[int, ...]
    pool: tuple[int, ...] | None
    right: tuple[int, ...] | None
    wrong: tuple[int, ...] | None
    none: tuple[int, ...] = ()


def select(question: Question, rankings: Rankings, corpus: Corpus, num_selected: int) -> Selection:
    """Choose what the generator reads.

    `right`: the best chunk of every known positive (K at most). `wrong`: one other document of the pool, drawn by the
    question's id alone, so that it is the same for every system; its best chunk.
    """
    question, names = corpus.judged(question)
    best = {}
    for row in reversed(rankings.pool):
        best[names.get(row) or corpus.document(row)] = row
    positives = [best[d] for d in question.positive_ids if d in best] or [
        rows[0] for d in question.positive_ids if (rows := corpus.store.rows_of(d))
    ]
    excluded = {*corpus.rows(question.exclude_ids)}
    others = sorted(d for d in best.keys() - {*question.positive_ids} if best[d] not in excluded)
    drawn = others[int(hash_of([question.question_id, "wrong"])[:12], 16) % len(others)] if others else None
    return Selection(
        index=rankings.index[:num_selected],
        pool=rankings.pool[:num_selected] or None,
        right=tuple(positives[:num_selected]) or None,
        wrong=None if drawn is None else (best[drawn],),
    )
