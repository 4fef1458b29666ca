"""BM25: rows that share rare words with a question."""

import logging
from collections.abc import Collection, Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray

from clara.data.records import Document, input_text
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.retrieval.ranker import NO_ROW, Queries, row_lists

# bm25s sets its logger to DEBUG at import and would log every index that is built.
logging.getLogger("bm25s").setLevel(logging.WARNING)


class Bm25:
    """An index in RAM over texts (Lucene's BM25, k1 = 1.5, b = 0.75; English stop words, no stemming). A `Ranker`.

    Args:
        texts: what is searched.
        row_ids: their ids, aligned, each once; their order breaks ties.

    Raises:
        InputError: no text, texts and ids of different number, or an id twice.
    """

    def __init__(self, texts: Sequence[str], row_ids: Sequence[int] | NDArray[np.int64]) -> None:
        self.row_ids = np.asarray(row_ids, np.int64)
        if not len(texts) or len(texts) != len(self.row_ids):
            raise InputError(
                f"BM25 of {len(texts)} texts and {len(self.row_ids)} row ids; expected one id for each text, at "
                "least one"
            )
        self._position = {row: position for position, row in enumerate(self.row_ids.tolist())}
        if len(self._position) != len(self.row_ids):
            raise InputError(
                f"BM25: {len(self.row_ids) - len(self._position)} row ids stand twice; give each text its own"
            )
        self._index = bm25s.BM25(method="lucene")
        tokens = _tokenise(texts)
        self._index.index(tokens, show_progress=False)

    @classmethod
    def of_memory(cls, store: MemoryStore) -> "Bm25":
        """Over title and text of every row of a MEMORY. Each shard is read once: ascending ids lie in all of them."""
        texts = [""] * len(store)
        for _, rows in store.iter_shards():
            positions = np.searchsorted(store.row_ids, rows).tolist()
            for position, chunk in zip(positions, store.records(rows), strict=True):
                texts[position] = input_text(chunk.title, chunk.text)
        return cls(texts, store.row_ids)

    @classmethod
    def of_documents(cls, documents: Sequence[Document]) -> "Bm25":
        """Over title and text of documents; row ids are their positions."""
        return cls([input_text(d.title, d.text) for d in documents], range(len(documents)))

    def rank(self, queries: Queries, k: int) -> list[list[int]]:
        """See `Ranker`. Rows without a common word are left out."""
        return row_lists(self.search(queries.texts, k, queries.excluded)[0])

    def score(self, queries: Queries, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Ranker`. Excluded rows and rows without a common word score 0."""
        scores_BN = (
            self._scores(words, excluded)
            for words, excluded in zip(_tokenise(queries.texts), queries.excluded, strict=True)
        )
        return [
            [0.0 if scores is None else float(scores[self._position[row]]) for row in own]
            for scores, own in zip(scores_BN, rows, strict=True)
        ]

    def _scores(self, words: list[str], excluded: Collection[int]) -> NDArray[np.float32] | None:
        """Scores of all rows, 0 for excluded ones; None: no word of the question is in any text."""
        known = self._index.get_tokens_ids(words)
        if not known:
            return None
        scores: NDArray[np.float32] = self._index.get_scores_from_ids(known)
        for row in excluded:
            if (position := self._position.get(row)) is not None:
                scores[position] = 0
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
        for number, words in enumerate(_tokenise(questions)):
            scores = self._scores(words, exclude[number] if exclude is not None else ())
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


def _tokenise(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(list(texts), stopwords="english", return_ids=False, show_progress=False)
