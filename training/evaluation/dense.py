"""Dense retrieval: the embeddings of any sentence-transformers folder, as the library computes and compares them."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from clara.data.questions import Question
from clara.data.records import input_text
from clara.errors import InputError
from clara.memory.store import Ids, MemoryStore
from clara.storage.artefact import hash_of, sha256_file
from training.evaluation.retrievers import DEPTH, Rankings, ranked

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_MODULES = "modules.json"
_BATCH_TEXTS = 32
# Questions whose scores with all rows are in memory at once.
_QUESTIONS_AT_ONCE = 64


def folder_hash(folder: str) -> str:
    """Hash of what lies in a model's folder.

    Raises:
        InputError: it is no sentence-transformers folder.
    """
    path = Path(folder)
    if not (path / _MODULES).is_file():
        raise InputError(
            f"--dense-model {folder!r}: no {_MODULES} in it; expected a sentence-transformers folder on this machine (nothing is downloaded)"
        )
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".txt", ".model")
    )
    return hash_of([[str(file.relative_to(path)), sha256_file(file)] for file in files])


class DenseEncoder:
    """An embedding model, and the vectors of the corpus that it embedded last: systems over the same texts share them."""

    def __init__(self, folder: str, device: str = "cpu") -> None:
        folder_hash(folder)
        self.folder, self.device = folder, device
        self._known: tuple[Ids, torch.Tensor] | None = None

    @functools.cached_property
    def model(self) -> "SentenceTransformer":
        """The model, loaded on first use.

        Raises:
            InputError: the library is not there, or cannot read the folder.
        """
        try:
            from sentence_transformers import SentenceTransformer  # seconds, which only this baseline pays
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
        """Similarity `[B, rows]` of questions with all rows of a MEMORY (title and text), in the order of its row ids."""
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


class DenseFinder:
    """Retrieval by embeddings of raw text."""

    def __init__(self, store: MemoryStore, encoder: DenseEncoder) -> None:
        self._store, self._encoder = store, encoder

    def rank(self, questions: Sequence[Question], pools: Sequence[Sequence[int]]) -> list[Rankings]:
        """See `Finder`."""
        place = {row: number for number, row in enumerate(self._store.row_ids.tolist())}
        rankings = []
        for begin in range(0, len(questions), _QUESTIONS_AT_ONCE):
            some = questions[begin : begin + _QUESTIONS_AT_ONCE]
            scores_BN = self._encoder.scores([q.question for q in some], self._store)
            for question, scores, pool in zip(some, scores_BN, pools[begin:], strict=False):
                inside = {row: float(scores[place[row]]) for row in pool}
                for document in question.exclude_ids:
                    scores[[place[row] for row in self._store.rows_of(document)]] = -np.inf
                order = np.argsort(-scores, kind="stable")[:DEPTH]
                found = self._store.row_ids[order[np.isfinite(scores[order])]]
                rankings.append(ranked(tuple(found.tolist()), inside))
        return rankings
