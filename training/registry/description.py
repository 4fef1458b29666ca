"""What is known of a registered model: versions, aliases, measures and the record of promotions."""

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from training.registry.record import record_of
from training.registry.store import versions_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LINEAGE = ("system", "checkpoint_hash", "memory_hash", "index_hash", "questions_hash", "fingerprint")


def described(client: "MlflowClient", name: str) -> dict[str, Any]:
    """Aliases, versions and the record of promotions, as JSON has them.

    Raises:
        InputError: no version of the model is registered.
    """
    versions = versions_of(client, name)
    aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    return {
        "name": name,
        "aliases": aliases,
        "versions": [
            {
                "version": number,
                "aliases": sorted(alias for alias, holder in aliases.items() if holder == number),
                "registered": datetime.fromtimestamp(versions[number].creation_timestamp / 1000, UTC).isoformat(
                    timespec="seconds"
                ),
                "run_id": versions[number].run_id,
                **{key: versions[number].tags.get(f"clara.{key}", "") for key in _LINEAGE},
            }
            for number in sorted(versions, key=int)
        ],
        "record": [dataclasses.asdict(entry) for entry in record_of(versions.values())],
    }


def with_runs(client: "MlflowClient", found: dict[str, Any], uri: str) -> dict[str, Any]:
    """The same with what the runs of its versions say: the evaluation's measures, and where MLflow's pages show them.

    Args:
        client: of the store.
        found: as `described` returns it.
        uri: of the store; only a server has pages.
    """
    pages = f"{uri.rstrip('/')}/#" if uri.startswith(("http://", "https://")) else ""
    versions = []
    for version in found["versions"]:
        run = client.get_run(version["run_id"])
        place = f"/experiments/{run.info.experiment_id}/runs/{version['run_id']}"
        # Measures are SPLIT/SYSTEM/MEASURE, figures of training have no such name.
        measures = {name: value for name, value in sorted(run.data.metrics.items()) if name.count("/") > 1}
        versions.append({**version, "measures": measures, "page": pages and pages + place})
    return {**found, "versions": versions, "page": pages and f"{pages}/models/{found['name']}"}
