"""Ways to find rows for questions: by memory (the system itself), by BM25, and (`dense.py`) by an embedding model. One interface for all.

A finder gives each question two rankings of rows, best first: over the whole MEMORY, and within the question's pool.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from clara.data.questions import Question
from clara.data.records import input_text
from clara.memory.store import MemoryStore
from clara.retrieval.bm25 import Bm25
from clara.retrieval.retriever import NO_ROW, Retriever
from clara.storage.artefact import hash_of

DEPTH = 100
"""Rows ranked over the whole MEMORY: what comes later counts as not found."""


@dataclass(frozen=True)
class Rankings:
    """Rows of one question, best first: over the whole MEMORY (cut at `DEPTH`), and all of its pool with their scores."""

    index: tuple[int, ...]
    pool: tuple[int, ...]
    pool_scores: tuple[float, ...] = ()


class Finder(Protocol):
    """Ranks rows for questions."""

    def rank(self, questions: Sequence[Question], pools: Sequence[Sequence[int]]) -> list[Rankings]:
        """Rankings of each question; `pools` are row ids."""
        ...


class MemoryFinder:
    """The system's own retrieval: flattened cosine of query and memory."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    def rank(self, questions: Sequence[Question], pools: Sequence[Sequence[int]]) -> list[Rankings]:
        """See `Finder`."""
        queries_BMD = self._retriever.queries([q.question for q in questions])
        found, _ = self._retriever.search(
            queries_BMD, min(DEPTH, len(self._retriever.store)), [q.exclude_ids for q in questions]
        )
        rankings = []
        for query_MD, index, pool in zip(queries_BMD, found.tolist(), pools, strict=True):
            scores = dict(zip(pool, self._retriever.score(query_MD, pool), strict=True))
            rankings.append(ranked(tuple(r for r in index if r != NO_ROW), scores))
        return rankings


class Bm25Finder:
    """Lexical retrieval over the same rows, title and text."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        texts = [input_text(c.title, c.text) for c in store.records(store.row_ids)]
        self._bm25 = Bm25(texts, store.row_ids)

    def rank(self, questions: Sequence[Question], pools: Sequence[Sequence[int]]) -> list[Rankings]:
        """See `Finder`."""
        excluded = [{row for document in q.exclude_ids for row in self._store.rows_of(document)} for q in questions]
        # Every row is ranked: a pool is then the part of the whole ranking that lies in it.
        found, scores = self._bm25.search([q.question for q in questions], len(self._store), exclude=excluded)
        rankings = []
        for rows, values, pool in zip(found.tolist(), scores.tolist(), pools, strict=True):
            whole = {row: value for row, value in zip(rows, values, strict=True) if row != NO_ROW}
            # Rows without a common word are no results of BM25; in a pool they come last, by row id.
            rankings.append(ranked(tuple(whole)[:DEPTH], {row: whole.get(row, 0.0) for row in pool}))
        return rankings


def ranked(index: tuple[int, ...], pool: Mapping[int, float]) -> Rankings:
    """Rankings of rows that are in order already, and of a pool by its scores; ties by row id, which is a hash of the content."""
    order = sorted(pool, key=lambda row: (-pool[row], row))
    return Rankings(index, tuple(order), tuple(pool[row] for row in order))


class Corpus:
    """Which document a row of a MEMORY belongs to, and back."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self._document = dict(zip(store.row_ids.tolist(), store.document_ids, strict=True))
        self.documents = sorted(set(store.document_ids))

    def rows(self, documents: Collection[str]) -> list[int]:
        """Rows of documents, in the documents' order; documents that are not in MEMORY have none."""
        return [row for document in documents for row in self.store.rows_of(document)]

    def ranked_documents(self, rows: Sequence[int]) -> list[str]:
        """Documents of ranked rows: one with several chunks stands where its best chunk does."""
        return list(dict.fromkeys(self._document[row] for row in rows))

    def document(self, row: int) -> str:
        """The document of a row."""
        return self._document[row]

    def pool(self, question: Question, size: int) -> tuple[str, ...]:
        """Document ids of a question's fixed pool.

        The one that it was published with, or else its positives and others of the corpus: the same ones at every call,
        for every system, in an order that hashes give. Published pools may have the right ones in front, also in
        QUESTIONS that others wrote.
        """
        documents = dict.fromkeys(question.candidate_ids)
        if not documents:
            closed = {*question.positive_ids, *question.exclude_ids}
            others = sorted(
                (d for d in self.documents if d not in closed), key=lambda d: hash_of([question.question_id, d])
            )
            documents = dict.fromkeys([*question.positive_ids, *others[: max(0, size - len(question.positive_ids))]])
        return tuple(sorted(documents, key=lambda d: hash_of(["order", question.question_id, d])))


@dataclass(frozen=True)
class Selection:
    """Rows that the generator reads in each condition; None where a question does not allow it."""

    index: tuple[int, ...]
    pool: tuple[int, ...] | None
    right: tuple[int, ...] | None
    wrong: tuple[int, ...] | None
    none: tuple[int, ...] = ()


CONDITIONS = ("index", "pool", "right", "wrong", "none")
"""K rows found over the whole MEMORY; K of the pool; the documents known to help; another of the pool; nothing."""


def select(question: Question, rankings: Rankings, corpus: Corpus, num_selected: int) -> Selection:
    """Choose what the generator reads.

    `right`: the best chunk of every known positive (K at most). `wrong`: one other document of the pool, drawn by the
    question's id alone, so that it is the same for every system; its best chunk.
    """
    best = {}
    for row in reversed(rankings.pool):
        best[corpus.document(row)] = row
    positives = [best[d] for d in question.positive_ids if d in best] or [
        rows[0] for d in question.positive_ids if (rows := corpus.store.rows_of(d))
    ]
    others = sorted(best.keys() - {*question.positive_ids, *question.exclude_ids})
    drawn = others[int(hash_of([question.question_id, "wrong"])[:12], 16) % len(others)] if others else None
    return Selection(
        index=rankings.index[:num_selected],
        pool=rankings.pool[:num_selected] or None,
        right=tuple(positives[:num_selected]) or None,
        wrong=None if drawn is None else (best[drawn],),
    )
