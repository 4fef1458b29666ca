"""The MLflow store: opened by its URI, with artefacts beside a local database and never in the working directory."""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from clara.errors import InputError
from clara.experiments import artefact_location, make_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PARAMS_A_CALL, _METRICS_A_CALL = 100, 1000
"""MLflow's own limits."""


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
        make_database(uri, lambda new: mlflow.MlflowClient(tracking_uri=new).search_experiments(max_results=1))
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
    return str(client.create_experiment(name, artifact_location=artefact_location(uri)))


def log_all(client: "MlflowClient", run_id: str, *, params: Mapping[str, str], metrics: Iterable[tuple[str, float, int]]) -> None:
    """Parameters, and metrics as (name, value, step), in as few calls as the store takes."""
    from mlflow.entities import Metric, Param

    now = time.time_ns() // 1_000_000
    entries = [Param(key, value) for key, value in params.items()]
    for begin in range(0, len(entries), _PARAMS_A_CALL):
        client.log_batch(run_id, params=entries[begin : begin + _PARAMS_A_CALL])
    points = [Metric(key, value, now, step) for key, value, step in metrics]
    for begin in range(0, len(points), _METRICS_A_CALL):
        client.log_batch(run_id, metrics=points[begin : begin + _METRICS_A_CALL])
