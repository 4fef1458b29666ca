"""A finished artefact as a run of an MLflow tracking server: its settings, counts and lineage, and the page about it."""

import argparse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.tracking import artefact_location, open_tracking, tracking_names


def add_tracking_arguments(parse: argparse._ActionsContainer, what: str) -> None:
    """Add where a finished artefact is logged."""
    parse.add_argument(
        "--mlflow",
        default="",
        metavar="URL",
        help=f"log the finished {what} and its summary.html to this tracking server (default: none)",
    )
    parse.add_argument(
        "--mlflow-experiment", default="corpus", help="experiment that the logged run belongs to (default: %(default)s)"
    )


def tracking_client(url: str) -> Any:
    """A client of an MLflow tracking server, or of a store that its URL names, which answers.

    Raises:
        InputError: the package is not installed, or nothing answers there.
    """
    try:
        import mlflow
    except ImportError as error:
        raise InputError(
            f"--mlflow {url}: the package mlflow is not installed; install the extra 'train', or leave --mlflow out"
        ) from error
    try:
        return open_tracking(url, mlflow.MlflowClient)
    except Exception as error:  # each kind of store has errors of its own
        raise InputError(
            f"--mlflow {url}: does not answer ({type(error).__name__}: {error}); correct the URL, or start the server"
        ) from error


@dataclass(frozen=True)
class Logged:
    """An artefact as it is logged.

    Attributes:
        name: the artefact as it was named.
        manifest: of it.
        hash: of its manifest.
        parameters: beside its recipe.
        figures: beside its counts.
        page: the file of its summary.
        again: the command that logs it later.
    """

    name: str
    manifest: Mapping[str, Any]
    hash: str
    parameters: Mapping[str, Any]
    figures: Mapping[str, float]
    page: Path
    again: str


def log_artefact(logged: Logged, url: str, experiment: str) -> str:
    """Log an artefact as one finished run: settings, counts, fingerprint and hash, and its page. Returns the run's id.

    Args:
        logged: what.
        url: of the tracking server.
        experiment: that the run belongs to.

    Raises:
        InputError: as of `tracking_client`, or the server refuses.
    """
    client, manifest = tracking_client(url), logged.manifest
    kind = str(manifest["kind"])
    try:
        found = client.get_experiment_by_name(experiment)
        where = (
            found.experiment_id
            if found
            else client.create_experiment(experiment, artifact_location=artefact_location(url))
        )
        tags = {"artefact": kind, kind.lower(): logged.name, f"{kind.lower()}_hash": logged.hash}
        run = client.create_run(where, run_name=Path(logged.name).name, tags=tags)
        number_of = run.info.run_id
        try:
            _log(client, number_of, logged)
        except BaseException:
            with suppress(Exception):  # what went wrong is told, not what else did
                client.set_terminated(number_of, "FAILED")
            raise
    except Exception as error:  # as above
        raise InputError(
            f"--mlflow {url}: refuses ({type(error).__name__}: {error}); log it later: {logged.again} --mlflow {url}"
        ) from error
    return str(number_of)


def _log(client: Any, run_id: str, logged: Logged) -> None:
    manifest = logged.manifest
    parameters = {**logged.parameters, **_flat(manifest["made_by"]["recipe"])}
    for name, known in tracking_names(parameters).items():
        client.log_param(run_id, known, str(parameters[name])[:500])
    if manifest.get("fingerprint"):
        client.set_tag(run_id, "fingerprint", manifest["fingerprint"])
    figures = {**_flat(manifest["counts"]), **logged.figures}
    for name, known in tracking_names(figures).items():
        client.log_metric(run_id, known, float(figures[name]))
    client.log_artifact(run_id, str(logged.page))
    client.set_terminated(run_id)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; lists are left out, as a corpus' files are too many for parameters."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif not isinstance(value, list):
            found[f"{before}{name}"] = value
    return found
