"""Embeddings of any sentence-transformers folder, as the library computes and compares them."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from clara.arrays import Ids
from clara.data.records import texts_of
from clara.errors import InputError
from clara.index.model_folder import folder_hash
from clara.memory.store import MemoryStore
from clara.storage.manifest import hash_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BATCH_TEXTS = 32
_ERRORS = OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError, RuntimeError


class DenseEncoder:
    """An embedding model in a folder. An `Encoder`.

    Attributes:
        folder: of the model.
        device: where it computes.
        hash: of its files, and of given prompts.
    """

    block_rows = 4096

    def __init__(self, folder: str, device: str = "cpu", prompts: tuple[str, str] | None = None) -> None:
        """The model is loaded when it is first used.

        Args:
            folder: of the model.
            device: where it computes.
            prompts: in front of questions and of texts; None: those of the model's own configuration.

        Raises:
            InputError: see `folder_hash`.
        """
        own = folder_hash(folder)
        self.folder, self.device, self.hash = folder, device, hash_of([own, *prompts]) if prompts else own
        self._given = prompts
        self._question_prompt = prompts[0] if prompts else None
        self._text_prompt = prompts[1] if prompts else None
        self._known: tuple[Ids, Tensor] | None = None

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
                f"{error.name}: not installed, and --dense-model needs it; run: pip install 'clara-rag[train]'"
            ) from error
        with self._refused("load it"):
            model = SentenceTransformer(self.folder, device=self.device, local_files_only=True, trust_remote_code=False)
            if not _knows_words(getattr(model, "tokenizer", None)):
                raise InputError(
                    f"--dense-model {self.folder!r}: its tokenizer knows no word, so that all texts would have one "
                    "vector; its files (tokenizer.json or vocab.txt) are missing: give a complete folder"
                )
            if missing := _drawn_at_random(model):
                raise InputError(
                    f"--dense-model {self.folder!r}: {len(missing)} weights are not in its files (first: {missing[0]}) "
                    "and would be drawn at random; give a complete folder"
                )
        return model

    @contextmanager
    def _refused(self, doing: str) -> Iterator[None]:
        """Report in one line what a damaged folder leads to, which is any error of the libraries that read it.

        Raises:
            InputError: as said.
        """
        try:
            yield
        except (InputError, torch.OutOfMemoryError):
            raise
        except (*_ERRORS, SafetensorError) as error:
            raise InputError(
                f"--dense-model {self.folder!r}: sentence-transformers cannot {doing} ({error}); give a complete folder"
            ) from error

    def description(self) -> dict[str, Any]:
        """What an INDEX records of the model: its hash, prompts and similarity, and the size of its vectors."""
        model = self.model
        return {
            "model": self.hash,
            "prompts": dict(zip(("query", "document"), self._given, strict=True)) if self._given else model.prompts,
            "default_prompt": "" if self._given else model.default_prompt_name or "",
            "similarity": str(model.similarity_fn_name),
            "size": int(model.get_embedding_dimension() or 0),
        }

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], *, shown: bool = False) -> Tensor:
        """Vectors `[n, E]` of texts that are searched.

        Raises:
            InputError: the model cannot embed them.
        """
        model = self.model
        with self._refused("embed texts with it"):
            return model.encode_document(
                list(texts),
                prompt=self._text_prompt,
                batch_size=_BATCH_TEXTS,
                convert_to_tensor=True,
                show_progress_bar=shown,
            )

    def embed_rows(self, store: MemoryStore, rows: Ids, *, shown: bool = False) -> Tensor:
        """Vectors `[n, E]` of title and text of rows."""
        return self.embed_texts(texts_of(store.records(rows)), shown=shown)

    @torch.no_grad()
    def embed_questions(self, questions: Sequence[str]) -> Tensor:
        """Vectors `[B, E]` of questions.

        Raises:
            InputError: the model cannot embed them, or a vector is not finite.
        """
        model = self.model
        with self._refused("embed questions with it"):
            asked = model.encode_query(
                list(questions),
                prompt=self._question_prompt,
                batch_size=_BATCH_TEXTS,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
        for question, finite in zip(questions, torch.isfinite(asked).all(dim=1).tolist(), strict=True):
            if not finite:
                raise InputError(
                    f"--dense-model {self.folder!r}: the vector of question {question!r} is not finite; "
                    "use another model"
                )
        return asked

    @torch.no_grad()
    def similarity(self, questions_BE: Tensor, rows_NE: Tensor) -> Tensor:
        """Similarity `[B, N]` in float32, as the model defines it."""
        return self.model.similarity(questions_BE, rows_NE.to(questions_BE.device)).float().cpu()

    def vectors_of(self, store: MemoryStore) -> Tensor:
        """Vectors `[rows, E]` of title and text of all rows; kept for systems over the same rows."""
        if self._known is None or not np.array_equal(self._known[0], store.row_ids):
            self._known = store.row_ids, self.embed_rows(store, store.row_ids, shown=len(store) > _BATCH_TEXTS)
        return self._known[1]


def _knows_words(tokenizer: Any) -> bool:
    """Whether a tokenizer has more than special tokens; without its files, transformers makes one that has not."""
    if not hasattr(tokenizer, "get_vocab"):
        return True  # of a kind that this program does not know
    return bool(set(tokenizer.get_vocab()) - set(getattr(tokenizer, "all_special_tokens", ())))


def _drawn_at_random(model: "SentenceTransformer") -> list[str]:
    """Weights of transformers' model that no file held, but those of its pooler, which nothing here uses.

    Adapters are loaded by another library. Empty where nothing is marked, as on some devices.
    """
    lm = getattr(model[0], "auto_model", None)
    if lm is None:
        return []  # not one of transformers
    # Only this mark says so: `output_loading_info` cannot be passed through sentence-transformers.
    marked = {name: getattr(weight, "_is_hf_initialized", False) for name, weight in lm.named_parameters()}
    if not any(marked.values()):
        return []
    return [n for n, loaded in marked.items() if not loaded and not n.startswith("pooler.") and "lora_" not in n]
