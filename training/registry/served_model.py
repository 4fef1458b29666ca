"""The served model, as MLflow loads it: a copy of the CHECKPOINT, and pointers to MEMORY, INDEX and language model.

MLflow keeps this file beside the model and runs it on loading ("models from code"), so that nothing is pickled.
"""

from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlparse

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.retrieval.reply import Reply, reply_of
from clara.retrieval.retriever import Retriever
from clara.storage.manifest import manifest_hash

CHECKPOINT = "checkpoint"
"""Name of the copied artefact."""


def local_path(uri: str) -> str:
    """The path of a `file:` URI; any other path or URL as it is."""
    parsed = urlparse(uri)
    return unquote(parsed.path) if parsed.scheme == "file" else uri


def pointed(kind: str, config: dict[str, Any]) -> str:
    """The directory or URL of the MEMORY or INDEX that was registered.

    Args:
        kind: `memory` or `index`.
        config: with `KIND_uri` and `KIND_hash`.

    Raises:
        InputError: it does not exist, or its manifest has another hash.
    """
    path = local_path(config[f"{kind}_uri"])
    found = manifest_hash(path)
    if found != config[f"{kind}_hash"]:
        raise InputError(
            f"{path}: this {kind.upper()} has manifest hash {found[:16]}…, the model was registered with "
            f"{config[f'{kind}_hash'][:16]}…; restore that version, load the model with "
            f"model_config={{'{kind}_uri': …}} of its new location, or register the model with the new {kind.upper()}"
        )
    return path


class ServedModel(PythonModel):
    """Answers questions, each with its passages."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the artefacts.

        Raises:
            InputError: an artefact does not exist or is not the registered one, or the parts do not fit each other.
        """
        config = dict(context.model_config or {})
        has_index = bool(config.get("index_uri"))
        self._retriever = Retriever.open(
            context.artifacts[CHECKPOINT],
            pointed("memory", config),
            pointed("index", config) if has_index else None,
            backbone=local_path(config["backbone_uri"]),
            device=config["device"],
            retrieval=Retrieval(
                first_level=config["first_level"],
                exact_rows=config.get("exact_rows", 0),  # an older program registered a model without it
                dense_model=local_path(config.get("dense_model_uri", "")),
                **config.get("dense_settings", {}),
            ),
        )
        self._num_selected, self._max_new_tokens = int(config["num_selected"]), int(config["max_new_tokens"])

    # MLflow reads the signature from the type hints, and omits the context if there is no such argument.
    def predict(  # type: ignore[override]
        self, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[Reply]:
        """Answer questions: a list of them, or a table with the one column `question`.

        Args:
            model_input: the questions.
            params: not used.

        Returns:
            A `Reply` for each question, as plain values: MLflow takes the schema from the type, and serves only plain
            values.
        """
        answered = self._retriever.ask(
            model_input, num_selected=self._num_selected, max_new_tokens=self._max_new_tokens
        )
        return cast(list[Reply], [reply_of(a).model_dump() for a in answered])


def code_path() -> str:
    """Path of this file, which MLflow copies."""
    return str(Path(__file__).resolve())


set_model(ServedModel())
