"""The MLflow store: opened by its URI, with artefacts beside a local database and never in the working directory."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
ARTIFACTS = "mlflow-artifacts"
_LARGEST_VALUE = 500
"""Characters of a parameter that every kind of store takes."""


def open_store(uri: str) -> "MlflowClient":
    """A client of the store, which is also set as this process's; a local database is made where there is none.

    Raises:
        InputError: an empty URI, or a database that can't be opened.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if not uri:
        raise InputError("--tracking-uri is empty; give an MLflow store, as sqlite:///artefacts/mlflow.db or http://HOST:PORT")
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if uri.startswith(_SQLITE):
            Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient()
        client.search_experiments(max_results=1)
    except (OSError, MlflowException) as error:
        raise InputError(f"--tracking-uri {uri!r}: cannot be opened ({error}); give a store that exists or can be made") from error
    return client


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Id of an experiment, made on demand: of a local database its artefacts lie beside it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith(_SQLITE):
        location = (Path(uri.removeprefix(_SQLITE)).resolve().parent / ARTIFACTS / name).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def flattened(tree: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested dictionaries by dotted key, as text that a store takes as a parameter."""
    if isinstance(tree, dict) and tree:
        return {key: value for name, below in tree.items() for key, value in flattened(below, f"{prefix}{name}.").items()}
    return {prefix.removesuffix("."): str(tree)[:_LARGEST_VALUE]}
