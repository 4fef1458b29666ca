"""BM25: rows that share rare words with a question."""

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clara.arrays import NO_ROW
from clara.data.records import Document, input_text, texts_of
from clara.errors import InputError
from clara.index.tokens import words_of
from clara.index.words import NAME as WORDS
from clara.index.words import empty_words, no_words, open_words
from clara.memory.store import MemoryStore
from clara.retrieval.ranker import Queries, row_lists
from clara.storage.artefact import Artefact

if TYPE_CHECKING:
    import bm25s

_log = logging.getLogger(__name__)
_FEW = 500  # up to one row in so many, rows are scored by themselves: with more of them, all rows take less time


class Bm25:
    """Lucene's BM25 over words (k1 = 1.5, b = 0.75; English stop words, no stemming). A `Ranker`."""

    def __init__(self, index: "bm25s.BM25", row_ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Rank by an index of bm25s.

        Args:
            index: of n texts, its words as returned by `words_of`.
            row_ids: their ids `[n]`, aligned, each once; their order breaks ties.

        Raises:
            InputError: texts and ids of different number, or an id twice.
        """
        self._index, self.row_ids = index, np.asarray(row_ids, np.int64)
        num_texts = index.scores["num_docs"]
        if num_texts != len(self.row_ids):
            raise InputError(
                f"BM25 of {num_texts} texts and {len(self.row_ids)} row ids; expected one id for each text"
            )
        self._order = np.argsort(self.row_ids, kind="stable")
        self._sorted = self.row_ids[self._order]
        if twice := int((self._sorted[1:] == self._sorted[:-1]).sum()):
            raise InputError(f"BM25: {twice} row ids occur twice; give each text its own")

    @property
    def num_bytes(self) -> int:
        """Bytes of its postings, in RAM or mapped, without the vocabulary."""
        return sum(int(self._index.scores[name].nbytes) for name in ("data", "indices", "indptr"))

    @classmethod
    def open(cls, index: Artefact | None, store: MemoryStore) -> "Bm25":
        """Over title and text of every row of a MEMORY: the words part of its INDEX, mapped; else built in RAM.

        Args:
            index: INDEX over the MEMORY; None: there is none.
            store: the MEMORY.

        Raises:
            InputError: the words part is damaged or of other rows, or no row has a word.
        """
        words = None if index is None else open_words(index)
        if words is not None:
            return cls(words, store.row_ids)
        if index is not None:
            found = "a words part of another version" if index.manifest.get(WORDS) else "no words part"
            _log.warning("%s has %s: BM25 is built in RAM; build the INDEX again to store it", index.name, found)
        return cls.of_memory(store)

    @classmethod
    def of_texts(cls, texts: Sequence[str], row_ids: Sequence[int] | NDArray[np.int64]) -> "Bm25":
        """Over texts, built in RAM.

        Raises:
            InputError: no text has a word; see `__init__`.
        """
        tokens = [words_of(text) for text in texts]
        if not any(tokens):
            raise no_words(f"BM25 of {len(texts)} texts")
        index = empty_words()
        index.index(tokens, show_progress=False)
        return cls(index, row_ids)

    @classmethod
    def of_memory(cls, store: MemoryStore) -> "Bm25":
        """Over title and text of every row of a MEMORY, in RAM; reads each shard once."""
        texts = [""] * len(store)
        for _, rows in store.iter_shards():
            positions = np.searchsorted(store.row_ids, rows).tolist()
            for position, chunk in zip(positions, store.records(rows), strict=True):
                texts[position] = input_text(chunk.title, chunk.text)
        return cls.of_texts(texts, store.row_ids)

    @classmethod
    def of_documents(cls, documents: Sequence[Document]) -> "Bm25":
        """Over title and text of documents; row ids are their positions."""
        return cls.of_texts(texts_of(documents), range(len(documents)))

    def rank(self, queries: Queries, k: int) -> list[list[int]]:
        """See `Ranker`. Rows without a common word are left out."""
        return row_lists(self.search(queries.texts, min(k, len(self.row_ids)), queries.excluded)[0])

    def score(self, queries: Queries, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Ranker`. Excluded rows and rows without a common word score 0."""
        found: list[list[float]] = []
        for text, excluded, own in zip(queries.texts, queries.excluded, rows, strict=True):
            positions, words = self._positions(own), self._index.get_tokens_ids(words_of(text))
            if len(positions) != len(own):
                raise ValueError(f"{len(own) - len(positions)} rows are not among those that BM25 is of")
            if not words:
                scores = np.zeros(len(own), np.float32)
            elif _FEW * len(own) < len(self.row_ids):
                scores = self._scores_at(positions, words)
            else:
                scores = self._index.get_scores_from_ids(words)[positions]
            scores[np.isin(own, list(excluded))] = 0
            found.append(scores.tolist())
        return found

    def _scores_at(self, positions: NDArray[np.intp], words: Sequence[int]) -> NDArray[np.float32]:
        """What bm25s computes for some positions of its texts, without the other texts: the same sums, in its order."""
        index, scores = self._index.scores, np.zeros(len(positions), np.float32)
        for word in words:
            begin, end = index["indptr"][word : word + 2]
            if begin == end:
                continue
            texts = index["indices"][begin:end]  # that have the word, ascending
            places = np.minimum(np.searchsorted(texts, positions), len(texts) - 1)
            has = texts[places] == positions
            scores[has] += index["data"][begin:end][places[has]]
        return scores

    def _positions(self, rows: Collection[int]) -> NDArray[np.intp]:
        """Positions of rows in `row_ids`, in their order; rows that are not there are left out."""
        wanted = np.fromiter(rows, np.int64, len(rows))
        places = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return self._order[places[self._sorted[places] == wanted]]

    def _scores(self, question: str, excluded: Collection[int]) -> NDArray[np.float32] | None:
        """Scores of all rows, 0 for excluded ones; None: no word of the question is in any text."""
        known = self._index.get_tokens_ids(words_of(question))
        if not known:
            return None
        scores: NDArray[np.float32] = self._index.get_scores_from_ids(known)
        scores[self._positions(excluded)] = 0
        return scores

    def search(
        self, questions: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best rows of each question, by score, then by order.

        Args:
            questions: B of them.
            k: rows wanted.
            exclude: for each question row ids that are left out; unknown ones are ignored.

        Returns:
            Row ids `[B, k]` and scores `[B, k]`. Rows without a common word are not returned: `NO_ROW` and -inf where
            there are fewer.
        """
        rows = np.full((len(questions), k), NO_ROW, np.int64)
        best = np.full((len(questions), k), -np.inf, np.float32)
        for number, question in enumerate(questions):
            scores = self._scores(question, exclude[number] if exclude is not None else ())
            if scores is None:
                continue
            order = top(scores, k)
            rows[number, : len(order)] = self.row_ids[order]
            best[number, : len(order)] = scores[order]
        return rows, best


def top(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Positions of the k largest positive scores, largest first, the earlier of two equal ones first."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        # Keep all ties at the k-th score until they are sorted: `partition` would choose among them arbitrarily.
        found = found[scores[found] >= np.partition(scores[found], len(found) - k)[len(found) - k]]
    return found[np.argsort(-scores[found], kind="stable")][:k]
