"""The model that the registry holds, as MLflow loads it: its own CHECKPOINT, and pointers to MEMORY, INDEX and LM.

MLflow keeps this file beside the model and runs it on loading ("models from code"), so that nothing of ours is pickled.
"""

from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlparse

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel

from clara.errors import InputError
from clara.retrieval.retriever import Answered, Retriever
from clara.storage.artefact import manifest_hash

CHECKPOINT = "checkpoint"
"""Name of the copied artefact."""


def local_path(uri: str) -> str:
    """The path that a pointer leads to, or the URL of a store, whose copy here is opened."""
    parsed = urlparse(uri)
    return unquote(parsed.path) if parsed.scheme == "file" else uri


def pointed(kind: str, config: dict[str, Any]) -> str:
    """The directory of MEMORY or INDEX, which must still be what was registered.

    Args:
        kind: `memory` or `index`.
        config: with `KIND_uri` and `KIND_hash`.

    Raises:
        InputError: it is gone, or its manifest has another hash.
    """
    path = local_path(config[f"{kind}_uri"])
    found = manifest_hash(path)
    if found != config[f"{kind}_hash"]:
        raise InputError(
            f"{path}: this {kind.upper()} has manifest hash {found[:16]}…, the model was registered with {config[f'{kind}_hash'][:16]}…; "
            f"restore that version, load the model with model_config={{'{kind}_uri': …}} where it lies now, or register the model with the new one"
        )
    return path


class Found(BaseModel):
    """A passage that an answer was read from."""

    document_id: str
    row_id: int
    title: str
    text: str


class Reply(BaseModel):
    """An answer with its passages, best first, and their scores."""

    question: str
    answer: str
    documents: list[Found]
    scores: list[float]


def as_record(answered: Answered) -> dict[str, Any]:
    """A `Reply` as plain values."""
    found = [Found(document_id=p.document_id, row_id=p.row_id, title=p.title, text=p.text) for p in answered.passages]
    scores = [p.score for p in answered.passages]
    return Reply(question=answered.question, answer=answered.answer, documents=found, scores=scores).model_dump()


class ServedModel(PythonModel):
    """Answers questions, each with its passages."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the artefacts.

        Raises:
            InputError: a pointer leads to nothing, to something else than was registered, or the parts don't fit each
                other.
        """
        config = dict(context.model_config or {})
        has_index = bool(config.get("index_uri"))
        self._retriever = Retriever.open(
            context.artifacts[CHECKPOINT],
            pointed("memory", config),
            pointed("index", config) if has_index else None,
            backbone=local_path(config["backbone_uri"]),
            device=config["device"],
            first_level=config["first_level"],
        )
        self._num_selected, self._max_new_tokens = int(config["num_selected"]), int(config["max_new_tokens"])

    # MLflow reads the signature from the type hints and leaves the context out where it is not asked for.
    def predict(  # type: ignore[override]
        self, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[Reply]:
        """Answer questions: a list of them, or a table with the one column `question`.

        Args:
            model_input: the questions.
            params: not used.

        Returns:
            A `Reply` for each question, as plain values: MLflow takes the schema from the type, and serves nothing but
            plain values.
        """
        answered = self._retriever.ask(
            model_input, num_selected=self._num_selected, max_new_tokens=self._max_new_tokens
        )
        return cast(list[Reply], [as_record(a) for a in answered])


def code_path() -> str:
    """Path of this file, which MLflow copies."""
    return str(Path(__file__).resolve())


set_model(ServedModel())
