"""Dense retrieval: the embeddings of any sentence-transformers folder, as the library computes and compares them."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.data.records import input_text
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.retrieval.ranker import Queries
from clara.storage.folders import sha256_file
from clara.storage.manifest import hash_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_MODULES = "modules.json"
_BATCH_TEXTS = 32
# Questions whose scores with all rows are in memory at once.
_QUESTIONS_AT_ONCE = 64


def folder_hash(folder: str) -> str:
    """Hash of the files of a model.

    Raises:
        InputError: it is no sentence-transformers folder.
    """
    path = Path(folder)
    if not (path / _MODULES).is_file():
        raise InputError(
            f"--dense-model {folder!r}: no {_MODULES} in it; expected a sentence-transformers folder on this machine "
            "(nothing is downloaded)"
        )
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".txt", ".model")
    )
    return hash_of([[str(file.relative_to(path)), sha256_file(file)] for file in files])


class DenseEncoder:
    """An embedding model, and the vectors of the texts that it embedded last, for systems over the same texts."""

    def __init__(self, folder: str, device: str = "cpu") -> None:
        folder_hash(folder)
        self.folder, self.device = folder, device
        self._known: tuple[Ids, torch.Tensor] | None = None

    @functools.cached_property
    def model(self) -> "SentenceTransformer":
        """The model, loaded on first use.

        Raises:
            InputError: the library is not installed, or cannot read the folder.
        """
        try:
            from sentence_transformers import SentenceTransformer  # takes seconds to import
        except ModuleNotFoundError as error:
            raise InputError(
                f"{error.name}: not installed, and --baselines dense needs it; run: pip install 'clara-rag[train]'"
            ) from error
        try:
            return SentenceTransformer(self.folder, device=self.device, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
            raise InputError(
                f"--dense-model {self.folder!r}: sentence-transformers cannot load it ({error}); give a complete folder"
            ) from error

    @torch.no_grad()
    def scores(self, questions: Sequence[str], store: MemoryStore) -> NDArray[np.float32]:
        """Similarity `[B, rows]` of questions with title and text of all rows, in the order of the row ids."""
        if self._known is None or not np.array_equal(self._known[0], store.row_ids):
            texts = [input_text(c.title, c.text) for c in store.records(store.row_ids)]
            shown = len(texts) > _BATCH_TEXTS
            vectors = self.model.encode_document(
                texts, batch_size=_BATCH_TEXTS, convert_to_tensor=True, show_progress_bar=shown
            )
            self._known = store.row_ids, vectors
        asked = self.model.encode_query(
            list(questions), batch_size=_BATCH_TEXTS, convert_to_tensor=True, show_progress_bar=False
        )
        return np.asarray(self.model.similarity(asked, self._known[1]).float().cpu().numpy(), np.float32)


class DenseRanker:
    """Ranks rows by embeddings of their texts. A `Ranker`."""

    def __init__(self, store: MemoryStore, encoder: DenseEncoder) -> None:
        self._store, self._encoder = store, encoder
        self._position = {row: position for position, row in enumerate(store.row_ids.tolist())}

    def rank(self, queries: Queries, k: int) -> list[list[int]]:
        """See `Ranker`."""
        ranked = []
        for scores_N, excluded in zip(self._scores(queries), queries.excluded, strict=True):
            scores_N[[self._position[row] for row in excluded]] = -np.inf
            order = np.argsort(-scores_N, kind="stable")[:k]
            ranked.append(self._store.row_ids[order[np.isfinite(scores_N[order])]].tolist())
        return ranked

    def score(self, queries: Queries, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Ranker`."""
        return [
            [float(scores_N[self._position[row]]) for row in own]
            for scores_N, own in zip(self._scores(queries), rows, strict=True)
        ]

    def _scores(self, queries: Queries) -> Iterator[NDArray[np.float32]]:
        for begin in range(0, len(queries.texts), _QUESTIONS_AT_ONCE):
            yield from self._encoder.scores(queries.texts[begin : begin + _QUESTIONS_AT_ONCE], self._store)
