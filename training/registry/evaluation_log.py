"""An EVALUATION as an MLflow run: its figures as metrics, its files as artefacts, what was compared as tags."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.errors import InputError
from clara.storage.artefact import manifest_hash, read_manifest
from clara.tracking import flatten
from training.evaluation.report import REPORT
from training.registry.store import experiment_id, failures, log_all, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "clara.evaluation"


def metrics_of(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every mean of a report as `SPLIT/SYSTEM/MEASURE`."""
    for system, of in report["systems"].items():
        for split, measures in of.items():
            for name, figure in measures.items():
                yield f"{split or 'all'}/{system}/{name}", figure["value"]


def track(evaluation: Path, uri: str, experiment: str) -> str:
    """Log an evaluation once: a second call finds the run of the same EVALUATION. Returns the run's id.

    Raises:
        InputError: the store does not answer, or refuses; a run that was begun has failed.
    """
    client = open_store(uri)
    try:
        return _track(client, evaluation, uri, experiment)
    except failures() as error:
        raise InputError(
            f"--tracking-uri {uri!r}: refuses ({error}); the evaluation is done: give the same command again when that is mended, and it is logged "
            "without being made again"
        ) from error


def _track(client: "MlflowClient", evaluation: Path, uri: str, experiment: str) -> str:
    where, version = experiment_id(client, uri, experiment), manifest_hash(evaluation)
    found = client.search_runs([where], f"tags.`{TAG}` = '{version}' and attributes.status = 'FINISHED'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    manifest = read_manifest(evaluation, "EVALUATION")
    run = client.create_run(
        where, run_name=f"evaluate {', '.join(manifest['systems'])}", tags={TAG: version, "stage": "evaluate"}
    )
    run_id = str(run.info.run_id)
    try:
        report = json.loads((evaluation / REPORT).read_text(encoding="utf-8"))
        metrics = ((key, value, 0) for key, value in metrics_of(report))
        log_all(client, run_id, params=flatten(manifest["made_by"]["recipe"]), metrics=metrics)
        for entry in manifest["files"]:
            client.log_artifact(run_id, str(evaluation / entry["path"]))
        client.set_terminated(run_id)
    except BaseException:
        with suppress(*failures()):
            client.set_terminated(run_id, "FAILED")
        raise
    return run_id
