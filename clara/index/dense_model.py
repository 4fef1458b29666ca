"""Which embedding model dense vectors are of: a folder, or an endpoint. It is read without a model library."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from clara.arrays import Ids
from clara.config.tree import Retrieval
from clara.endpoints import check_url
from clara.errors import InputError
from clara.index.model_folder import declared_prompts, folder_hash
from clara.memory.store import MemoryStore
from clara.storage.manifest import hash_of

if TYPE_CHECKING:
    from torch import Tensor

_PROMPTS = ("dense_question_prompt", "dense_text_prompt")
_OF_ENDPOINTS = ("dense_name", *_PROMPTS, "dense_size")


class Encoder(Protocol):
    """An embedding model.

    Attributes:
        folder: folder or URL, for messages.
        hash: of what determines its vectors.
        block_rows: rows whose vectors are written together, so that an interruption loses no more than them.
    """

    folder: str
    hash: str
    block_rows: int

    def description(self) -> dict[str, Any]:
        """What an INDEX records of the model: `model` (its hash), `prompts`, `default_prompt`, `similarity`, `size`."""
        ...

    def embed_rows(self, store: MemoryStore, rows: Ids) -> "Tensor":
        """Vectors `[n, E]` of title and text of rows.

        Raises:
            InputError: they cannot be computed.
        """
        ...

    def embed_questions(self, questions: Sequence[str]) -> "Tensor":
        """Vectors `[B, E]` of questions.

        Raises:
            InputError: they cannot be computed, or one is not finite.
        """
        ...

    def similarity(self, questions_BE: "Tensor", rows_NE: "Tensor") -> "Tensor":
        """Similarity `[B, N]` in float32."""
        ...

    def vectors_of(self, store: MemoryStore) -> "Tensor":
        """Vectors `[rows, E]` of all rows, for a search without an INDEX.

        Raises:
            InputError: they cannot be computed, or only an INDEX may hold vectors of this model.
        """
        ...


def is_endpoint(settings: Retrieval) -> bool:
    """Whether the embedding model of the settings is behind an endpoint.

    Raises:
        InputError: the URL is not valid; an endpoint without a name of the model; a folder with settings that only an
            endpoint has; no model at all, with settings of one.
    """
    if not settings.dense_model.startswith(("http://", "https://")):
        for name in _OF_ENDPOINTS:
            if (value := getattr(settings, name)) and not (settings.dense_model and name in _PROMPTS):
                raise InputError(
                    f"retrieval.{name} = {value!r} is for an endpoint, and --dense-model is "
                    f"{settings.dense_model or 'empty'!r}; leave it out, or give the URL of an endpoint"
                )
        return False
    check_url(settings.dense_model, "--dense-model")
    if not settings.dense_name:
        raise InputError(
            f"--dense-model {settings.dense_model!r} is an endpoint, and retrieval.dense_name is empty; name the "
            "embedding model there with --dense-name"
        )
    return True


def model_hash(settings: Retrieval) -> str:
    """Hash of what determines the vectors: files of a folder, and prompts; name, prompts and size at an endpoint.

    The URL does not count: the same model may move.

    Raises:
        InputError: see `is_endpoint` and `folder_hash`.
    """
    if is_endpoint(settings):
        return hash_of(["endpoint", *(getattr(settings, name) for name in _OF_ENDPOINTS)])
    own = folder_hash(settings.dense_model)
    given = [getattr(settings, name) for name in _PROMPTS]
    return hash_of([own, *given]) if any(given) else own


def prompts_of(settings: Retrieval) -> tuple[str, str]:
    """What is put in front of questions and of texts: as given, else as a folder's own configuration has it.

    Raises:
        InputError: see `is_endpoint` and `declared_prompts`.
    """
    given = settings.dense_question_prompt, settings.dense_text_prompt
    if any(given) or is_endpoint(settings):
        return given
    return declared_prompts(settings.dense_model)


def open_encoder(settings: Retrieval, device: str = "cpu") -> Encoder:
    """The embedding model of the settings; it is loaded or asked when it is first used.

    Args:
        settings: `dense_model` is not empty.
        device: where the model of a folder computes.

    Raises:
        InputError: see `model_hash`.
    """
    if is_endpoint(settings):
        from clara.index.endpoint_encoder import EndpointEncoder  # imports torch, as the other

        return EndpointEncoder(settings, model_hash(settings))
    from clara.index.embedding import DenseEncoder

    given = settings.dense_question_prompt, settings.dense_text_prompt
    return DenseEncoder(settings.dense_model, device, prompts=given if any(given) else None)
