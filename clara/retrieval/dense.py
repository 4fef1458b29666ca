"""Dense retrieval: exact search over the vectors of an embedding model."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara.arrays import Ids
from clara.errors import InputError
from clara.index.dense import NAME, open_dense
from clara.index.dense_model import Encoder
from clara.memory.store import MemoryStore
from clara.retrieval.ranker import Queries
from clara.storage.artefact import Artefact

# Questions whose scores with all rows are in memory at once, and rows that are compared at once.
_QUESTIONS_AT_ONCE, _ROWS_AT_ONCE = 64, 65_536


class DenseRanker:
    """Ranks rows by embeddings of their texts. A `Ranker`."""

    def __init__(self, row_ids: Ids, vectors_NE: Tensor | NDArray[np.float16], encoder: Encoder) -> None:
        """Rank by vectors that are there.

        Args:
            row_ids: of the rows, ascending `[N]`.
            vectors_NE: of the rows, aligned.
            encoder: the model that made them.
        """
        self._row_ids, self._vectors_NE, self._encoder = row_ids, vectors_NE, encoder
        self._last: tuple[tuple[str, ...], Tensor] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of its vectors, in RAM or mapped."""
        return int(self._vectors_NE.nbytes)

    @classmethod
    def open(cls, index: Artefact, store: MemoryStore, encoder: Encoder) -> "DenseRanker":
        """Over the dense part of the INDEX of a MEMORY, mapped.

        Raises:
            InputError: see `open_dense`.
        """
        return cls(store.row_ids, open_dense(index, encoder), encoder)

    @classmethod
    def of_index_or_memory(cls, index: Artefact | None, store: MemoryStore, encoder: Encoder) -> "DenseRanker":
        """Over the dense part of an INDEX if it is of this model, else over vectors that are computed now.

        Raises:
            InputError: see `open_dense`.
        """
        described = {} if index is None else index.manifest.get(NAME) or {}
        if index is not None and described.get("model") == encoder.hash:
            return cls.open(index, store, encoder)
        return cls.of_memory(store, encoder)

    @classmethod
    def of_memory(cls, store: MemoryStore, encoder: Encoder) -> "DenseRanker":
        """Over title and text of all rows, computed now.

        Raises:
            InputError: see `Encoder.vectors_of`.
        """
        return cls(store.row_ids, encoder.vectors_of(store), encoder)

    def rank(self, queries: Queries, k: int) -> list[list[int]]:
        """See `Ranker`."""
        ranked = []
        for scores_N, excluded in zip(self._scores(queries), queries.excluded, strict=True):
            scores_N[np.isin(self._row_ids, list(excluded))] = -np.inf
            order = _first(scores_N, k)
            ranked.append(self._row_ids[order[np.isfinite(scores_N[order])]].tolist())
        return ranked

    def score(self, queries: Queries, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Ranker`."""
        positions = [np.searchsorted(self._row_ids, np.asarray(own, np.int64)) for own in rows]
        if sum(map(len, positions)) < len(self._row_ids):  # the rows of a few candidates: the others are not read
            asked_BE = self._asked(queries.texts)
            return [
                self._encoder.similarity(asked_E[None], self._float(self._vectors_NE[own]))[0].tolist()
                for asked_E, own in zip(asked_BE, positions, strict=True)
            ]
        return [scores_N[own].tolist() for scores_N, own in zip(self._scores(queries), positions, strict=True)]

    def _asked(self, questions: Sequence[str]) -> Tensor:
        """Vectors `[B, E]` of questions.

        Raises:
            InputError: they have another size than those of the rows.
        """
        if self._last is not None and self._last[0] == tuple(questions):
            return self._last[1]  # a fused score ranks rows for the questions, then scores rows for the same ones
        asked_BE = self._encoder.embed_questions(questions)
        if asked_BE.shape[1] != self._vectors_NE.shape[1]:
            raise InputError(
                f"--dense-model {self._encoder.folder!r}: gives vectors of {asked_BE.shape[1]} numbers, those of "
                f"the rows have {self._vectors_NE.shape[1]}; build the INDEX with this model"
            )
        self._last = tuple(questions), asked_BE
        return asked_BE

    @staticmethod
    def _float(block: Tensor | NDArray[np.float16]) -> Tensor:
        return block if isinstance(block, Tensor) else torch.from_numpy(block.astype(np.float32))

    def _scores(self, queries: Queries) -> Iterator[NDArray[np.float32]]:
        """Similarity of each question with all rows `[N]`."""
        for begin in range(0, len(queries.texts), _QUESTIONS_AT_ONCE):
            asked_BE = self._asked(queries.texts[begin : begin + _QUESTIONS_AT_ONCE])
            scores_BN = np.empty((len(asked_BE), len(self._row_ids)), np.float32)
            for first in range(0, len(self._row_ids), _ROWS_AT_ONCE):
                rows = self._float(self._vectors_NE[first : first + _ROWS_AT_ONCE])
                scores_BN[:, first : first + len(rows)] = self._encoder.similarity(asked_BE, rows).numpy()
            yield from scores_BN


def _first(scores_N: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Positions of the k largest, largest first, the earlier of two equal ones first."""
    found = np.arange(len(scores_N))
    if len(found) > k:
        # Keep all ties at the k-th score until they are sorted: `partition` would choose among them arbitrarily.
        found = np.flatnonzero(scores_N >= np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k])
    return found[np.argsort(-scores_N[found], kind="stable")][:k]
