"""BM25: candidates that share rare words with a question."""

import logging
from collections.abc import Collection, Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray

from clara.errors import InputError

# It sets its own logger to DEBUG at import and would tell of every index built.
logging.getLogger("bm25s").setLevel(logging.WARNING)


class Bm25:
    """An index in RAM over texts (Lucene's BM25, k1 = 1.5, b = 0.75; English stop words, no stemming).

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
                f"BM25 of {len(texts)} texts and {len(self.row_ids)} row ids; expected one id for each text, at least one"
            )
        self._position = {row: position for position, row in enumerate(self.row_ids.tolist())}
        if len(self._position) != len(self.row_ids):
            raise InputError(
                f"BM25: {len(self.row_ids) - len(self._position)} row ids stand twice; give each text its own"
            )
        self._index = bm25s.BM25(method="lucene")
        tokens = _tokenise(texts)
        self._index.index(tokens, show_progress=False)

    def search(
        self, questions: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best rows of each question, by score, then by order.

        Args:
            questions: B of them.
            k: rows wanted.
            exclude: for each question row ids that are left out; unknown ones are ignored.

        Returns:
            Row ids `[B, k]` and scores `[B, k]`. A row without a common word is no result: -1 and -inf where there are
            fewer.
        """
        rows = np.full((len(questions), k), -1, np.int64)
        best = np.full((len(questions), k), -np.inf, np.float32)
        for number, words in enumerate(_tokenise(questions)):
            known = self._index.get_tokens_ids(words)
            if not known:
                continue
            scores = self._index.get_scores_from_ids(known)
            for row in exclude[number] if exclude is not None else ():
                if (position := self._position.get(row)) is not None:
                    scores[position] = 0
            order = top(scores, k)
            rows[number, : len(order)] = self.row_ids[order]
            best[number, : len(order)] = scores[order]
        return rows, best


def top(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Positions of the k largest positive scores, largest first, the earlier of two equal ones first."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        # Ties at the k-th score are all kept until they are sorted, or chance would choose among them.
        found = found[scores[found] >= np.partition(scores[found], len(found) - k)[len(found) - k]]
    return found[np.argsort(-scores[found], kind="stable")][:k]


def _tokenise(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(list(texts), stopwords="english", return_ids=False, show_progress=False)
