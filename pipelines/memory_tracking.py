"""A finished MEMORY as a run of an MLflow tracking server: its settings, counts and lineage, and the page about it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.experiments import artefact_location, open_tracking
from clara.memory import KIND

_NOT_IN_NAMES = re.compile(r"[^\w.-]")


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


def log_memory(
    memory: str, manifest: Mapping[str, Any], memory_hash: str, figures: Mapping[str, float], page: Path, url: str, experiment: str
) -> str:
    """Log a MEMORY as one finished run: settings, counts, fingerprint and hash, and its page. Returns the run's id.

    Args:
        memory: the MEMORY as it was named.
        manifest: of it.
        memory_hash: of its manifest.
        figures: what is logged beside the manifest's counts.
        page: its summary.
        url: of the tracking server.
        experiment: that the run belongs to.

    Raises:
        InputError: as of `tracking_client`, or the server refuses.
    """
    client = tracking_client(url)
    try:
        found = client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else client.create_experiment(experiment, artifact_location=artefact_location(url))
        run = client.create_run(where, run_name=Path(memory).name, tags={"artefact": KIND, "memory": memory})
        number_of = run.info.run_id
        for name, value in {**manifest["fingerprint_fields"], **_flat(manifest["made_by"]["recipe"])}.items():
            client.log_param(number_of, name, str(value)[:500])
        client.set_tag(number_of, "fingerprint", manifest["fingerprint"])
        client.set_tag(number_of, "memory_hash", memory_hash)
        for name, value in {**_flat(manifest["counts"]), **figures}.items():
            client.log_metric(number_of, _NOT_IN_NAMES.sub("_", name), float(value))
        client.log_artifact(number_of, str(page))
        client.set_terminated(number_of)
    except Exception as error:  # as above
        raise InputError(
            f"--mlflow {url}: refuses ({type(error).__name__}: {error}); log it later: python -m pipelines.memory_summary --memory {memory} --mlflow {url}"
        ) from error
    return str(number_of)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; lists are left out, as a corpus' files are too many for parameters."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif not isinstance(value, list):
            found[f"{before}{name}"] = value
    return found
