"""A finished artefact as a run of a tracking store: its settings, counts and lineage, and its summary page."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from clara.config.flags import add_setting
from clara.errors import InputError
from clara.tracking.back_ends import open_log
from clara.tracking.names import leaves
from clara.tracking.run_log import Run, RunLog, TrackingError, failing


def add_tracking_arguments(parse: argparse._ActionsContainer) -> None:
    """Add where a finished artefact is logged."""
    add_setting(parse, "tracking.uri", "--tracking-uri", metavar="URI")
    add_setting(parse, "tracking.corpus_experiment", "--tracking-experiment", metavar="NAME")


def _mlflow() -> ModuleType:
    import mlflow

    return mlflow


def open_run_log(uri: str) -> RunLog:
    """The run log of a store that answers.

    Raises:
        InputError: the package of the store is not installed, or the store does not answer.
    """
    try:
        return open_log(uri, _mlflow)
    except ImportError as error:
        raise InputError(
            f"--tracking-uri {uri}: the package {error.name} is not installed; install the extra 'train', or leave "
            "--tracking-uri out"
        ) from error
    except TrackingError as error:
        raise InputError(
            f"--tracking-uri {uri}: does not answer ({error}); correct the URI, or start the server"
        ) from error


@dataclass(frozen=True)
class Logged:
    """An artefact to be logged.

    Attributes:
        name: the artefact's path or URL, as the user gave it.
        manifest: of the artefact.
        hash: of its manifest.
        parameters: logged beside its recipe.
        figures: logged beside its counts.
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


def log_artefact(logged: Logged, uri: str, experiment: str) -> str:
    """Log an artefact as one finished run: settings, counts, fingerprint and hash, and its page. Returns the run's id.

    Args:
        logged: the artefact.
        uri: of the tracking store.
        experiment: that the run belongs to.

    Raises:
        InputError: as raised by `open_run_log`, or the store refuses.
    """
    log, manifest = open_run_log(uri), logged.manifest
    kind = str(manifest["kind"])
    tags = {"artefact": kind, kind.lower(): logged.name, f"{kind.lower()}_hash": logged.hash}
    if manifest.get("fingerprint"):
        tags["fingerprint"] = manifest["fingerprint"]
    try:
        log.begin(Run(experiment, Path(logged.name).name, tags))
        with failing(log):
            log.parameters({**logged.parameters, **_single_values(manifest["made_by"]["recipe"])})
            log.metrics({0: {**_single_values(manifest["counts"]), **logged.figures}})
            log.file(logged.page)
            log.finish()
    except TrackingError as error:
        raise InputError(
            f"--tracking-uri {uri}: refuses ({error}); log it later: {logged.again} --tracking-uri {uri}"
        ) from error
    return log.run_id


def _single_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by dotted key, without lists: the files of a corpus are too many for one parameter."""
    return {name: value for name, value in leaves(tree) if not isinstance(value, (list, Mapping))}
