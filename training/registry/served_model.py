"""The served model, as MLflow loads it: a copy of the CHECKPOINT, and pointers to MEMORY, INDEX and language model.

MLflow keeps this file beside the model and runs it on loading ("models from code"), so that nothing is pickled.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlparse

import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import ParamSchema

from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.retrieval.reply import reply_of
from clara.retrieval.request import PARAMETERS, parameters_of, questions_of
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


class RefusedError(InputError, MlflowException):
    """A request that cannot be answered; MLflow's server replies with status 400 and its message."""

    def __init__(self, message: str) -> None:
        MlflowException.__init__(self, message, error_code=INVALID_PARAMETER_VALUE)


Enforce = Callable[[Any, ParamSchema | None], Any]


def _refusing(enforce: Enforce) -> Enforce:
    """MLflow's check of `params`, which drops names that it does not know; for a model of this kind it refuses them."""

    @functools.wraps(enforce)
    def enforced(params: Any, schema: ParamSchema | None) -> Any:
        own = schema is not None and [each.name for each in schema.params] == list(PARAMETERS)
        if own and isinstance(params, Mapping) and (unknown := [name for name in params if name not in PARAMETERS]):
            raise RefusedError(f"params has {', '.join(map(repr, unknown))}; expected {' or '.join(PARAMETERS)}")
        return enforce(params, schema)

    return enforced


warnings.filterwarnings("ignore", ".*Add type hints to the `predict` method")  # MLflow would convert what comes by them


class ServedModel(PythonModel):
    """Answers questions, each with its passages."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the artefacts.

        Raises:
            InputError: an artefact does not exist or is not the registered one, or the parts do not fit each other.
        """
        loader = cast(Any, mlflow.pyfunc)
        if not hasattr(loader._enforce_params_schema, "__wrapped__"):
            loader._enforce_params_schema = _refusing(loader._enforce_params_schema)
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

    def predict(  # type: ignore[no-untyped-def]  # without a type hint MLflow passes on what came
        self, model_input, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer questions.

        Args:
            model_input: see `clara.retrieval.request.questions_of`.
            params: `num_selected` and `max_new_tokens` of this request.

        Returns:
            The fields of a `Reply` for each question: MLflow serves only plain values.

        Raises:
            RefusedError: a question that is empty or no text, a table with other columns than `question`, or a
                parameter out of its range.
        """
        try:
            settings: dict[str, Any] = {"num_selected": self._num_selected, "max_new_tokens": self._max_new_tokens}
            answered = self._retriever.ask(questions_of(model_input), **settings | parameters_of(params))
        except InputError as error:
            raise RefusedError(str(error)) from error
        return [reply_of(a).model_dump() for a in answered]


def code_path() -> str:
    """Path of this file, which MLflow copies."""
    return str(Path(__file__).resolve())


set_model(ServedModel())
