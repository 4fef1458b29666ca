"""The MLflow store: opened by its URI, with artefacts beside a local database and never in the working directory."""

import logging
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from clara.errors import InputError
from clara.tracking import artefact_location, open_tracking, tracking_names

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOT_IN_NAMES, _LONGEST_NAME = "/:.%\"'", 256
_ALIAS, _RESERVED_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}"), re.compile(r"latest|v\d+")
"""MLflow's own rules."""
_PARAMS_A_CALL, _METRICS_A_CALL = 100, 1000
"""MLflow's own limits."""


def failures() -> tuple[type[Exception], ...]:
    """What MLflow raises where its store cannot be reached, read or written."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


def open_store(uri: str) -> "MlflowClient":
    """A client of the store, which is also set as this process's; a local database is made where there is none.

    Raises:
        InputError: an empty URI, or a database that can't be opened.
    """
    import mlflow

    if not uri:
        raise InputError(
            "--tracking-uri is empty; give an MLflow store, as sqlite:///artefacts/mlflow.db or http://HOST:PORT"
        )
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        open_tracking(uri, mlflow.MlflowClient)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        return mlflow.MlflowClient()
    except failures() as error:
        raise InputError(
            f"--tracking-uri {uri!r}: cannot be opened ({error}); give a store that exists or can be made"
        ) from error


def check_names(name: str, alias: str | None = None) -> None:
    """Refuse what MLflow takes for no name of a model, or for no alias, ahead of the work.

    Raises:
        InputError: one of them.
    """
    if not name or set(name) & set(_NOT_IN_NAMES) or len(name) > _LONGEST_NAME:
        raise InputError(
            f"--name {name!r:.60}: expected 1 to {_LONGEST_NAME} characters, none of them among {' '.join(_NOT_IN_NAMES)}"
        )
    if alias is not None and (not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias.lower())):
        raise InputError(
            f"--alias {alias!r:.60}: expected letters, digits, - and _, and neither latest nor v with a number, as champion"
        )


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Id of an experiment, made on demand: of a local database its artefacts lie beside it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=artefact_location(uri)))


def log_all(
    client: "MlflowClient", run_id: str, *, params: Mapping[str, str], metrics: Iterable[tuple[str, float, int]]
) -> None:
    """Parameters, and metrics as (name, value, step), in as few calls as the store takes; names as `tracking_names` gives them."""
    from mlflow.entities import Metric, Param

    now = time.time_ns() // 1_000_000
    named = tracking_names(params)
    entries = [Param(named[key], value) for key, value in params.items()]
    for begin in range(0, len(entries), _PARAMS_A_CALL):
        client.log_batch(run_id, params=entries[begin : begin + _PARAMS_A_CALL])
    given = list(metrics)
    named = tracking_names(key for key, _, _ in given)
    points = [Metric(named[key], value, now, step) for key, value, step in given]
    for begin in range(0, len(points), _METRICS_A_CALL):
        client.log_batch(run_id, metrics=points[begin : begin + _METRICS_A_CALL])
