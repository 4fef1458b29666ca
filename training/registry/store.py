"""The MLflow store: its client, its registry of models, and the run log of a tracking URI."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from clara.endpoints import refuse_password
from clara.errors import InputError
from clara.tracking.back_ends import open_log
from clara.tracking.database import open_tracking, reason_of
from clara.tracking.mlflow_log import store_errors
from clara.tracking.run_log import RunLog, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_NOT_IN_NAMES, _LONGEST_NAME = "/:.%\"'", 256
_ALIAS, _RESERVED_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}"), re.compile(r"latest|v\d+")
"""MLflow's rules."""


def open_run_log(uri: str) -> RunLog:
    """The run log of a store that answers.

    Raises:
        TrackingError: the store cannot be created, reached or read.
    """
    return open_log(uri, _mlflow)


def _mlflow() -> ModuleType:
    import mlflow

    return mlflow


def open_store(uri: str) -> "MlflowClient":
    """A client of the store, which also becomes the store of this process. A local database is created on demand.

    Raises:
        InputError: the URI is empty, or the store cannot be opened.
    """
    import mlflow

    if not uri:
        raise InputError(
            "--tracking-uri is empty; give an MLflow store, as sqlite:///artefacts/mlflow.db or http://HOST:PORT"
        )
    refuse_password(uri)
    try:
        with store_errors():
            open_tracking(uri, mlflow.MlflowClient)
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
            return mlflow.MlflowClient()
    except TrackingError as error:
        raise InputError(
            f"--tracking-uri {uri!r}: cannot be opened ({error}); give a store that exists or can be created"
        ) from error


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Inside, a store that is away or refuses is bad input.

    Raises:
        InputError: in place of MLflow's errors, those of its HTTP client, and `TrackingError`.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (TrackingError, MlflowException, RequestException) as error:
        raise InputError(
            f"--tracking-uri {uri!r}: does not answer, or refuses ({reason_of(error)}); correct that or the URI, or "
            "start the server, and run the same command again"
        ) from error


def versions_of(client: "MlflowClient", name: str) -> "dict[str, ModelVersion]":
    """The versions of a model by number.

    Raises:
        InputError: the model has no version.
    """
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if not versions:
        raise InputError(
            f"--name {name!r}: no version is registered in this store; register one with python -m training.register"
        )
    return versions


def check_names(name: str, alias: str | None = None) -> None:
    """Refuse names of models and aliases that MLflow refuses, before any work is done.

    Raises:
        InputError: one of them breaks MLflow's rules.
    """
    if not name or set(name) & set(_NOT_IN_NAMES) or len(name) > _LONGEST_NAME:
        raise InputError(
            f"--name {name!r:.60}: expected 1 to {_LONGEST_NAME} characters, none of them among "
            f"{' '.join(_NOT_IN_NAMES)}"
        )
    if alias is not None and (not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias.lower())):
        raise InputError(
            f"--alias {alias!r:.60}: expected letters, digits, - and _, and neither latest nor v with a number, "
            "as champion"
        )
