"""An EVALUATION as a run of a tracking store: figures as metrics, files, and the compared systems as parameters."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.storage.manifest import manifest_hash, read_manifest
from clara.tracking.names import flatten
from clara.tracking.run_log import Run, TrackingError, failing
from training.evaluation.files import REPORT
from training.registry.store import open_run_log

TAG = "clara.evaluation"


def metrics_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Every mean of a report, by `SPLIT/SYSTEM/MEASURE`."""
    return {
        f"{split or 'all'}/{system}/{name}": figure["value"]
        for system, of in report["systems"].items()
        for split, measures in of.items()
        for name, figure in measures.items()
    }


def track(evaluation: Path, uri: str, experiment: str) -> str:
    """Log an evaluation once: a later call returns the run of the same EVALUATION. Returns the run's id.

    Raises:
        InputError: the store does not answer, or refuses; a run that was begun has failed.
    """
    manifest, version = read_manifest(evaluation, "EVALUATION"), manifest_hash(evaluation)
    name = f"evaluate {', '.join(manifest['systems'])}"
    run = Run(experiment, name, {TAG: version, "stage": "evaluate"}, key=TAG)
    try:
        log = open_run_log(uri)
        if not log.begin(run):
            with failing(log):
                log.parameters(flatten(manifest["made_by"]["recipe"]))
                log.metrics({0: metrics_of(json.loads((evaluation / REPORT).read_text(encoding="utf-8")))})
                for entry in manifest["files"]:
                    log.file(evaluation / entry["path"])
                log.finish()
    except TrackingError as error:
        raise InputError(
            f"--tracking-uri {uri!r}: refuses ({error}); the evaluation is finished: correct the URI or the store and "
            "run the same command again, and it is logged without being made again"
        ) from error
    return log.run_id
