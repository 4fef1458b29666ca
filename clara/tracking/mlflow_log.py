"""`RunLog` for MLflow. The package `mlflow` is passed in: nothing below the commands imports it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from clara.tracking.database import artefact_location, open_tracking, reason_of
from clara.tracking.names import tracking_names
from clara.tracking.run_log import Run, TrackingError

_PARAMETERS_PER_CALL, _METRICS_PER_CALL = 100, 1000
"""MLflow's limits."""
T = TypeVar("T")


@contextmanager
def store_errors() -> Iterator[None]:
    """Inside, every error of a tracking store is a `TrackingError`: each kind of store raises different ones."""
    try:
        yield
    except Exception as error:
        raise TrackingError(reason_of(error)) from error


class MlflowLog:
    """One run of an MLflow store (`RunLog`)."""

    def __init__(self, uri: str, mlflow: ModuleType) -> None:
        """Open the store.

        Raises:
            TrackingError: it cannot be created, reached or read.
        """
        self.run_id = ""
        self._uri, self._entities = uri, mlflow.entities
        with store_errors():
            self._client = open_tracking(uri, mlflow.MlflowClient)

    @store_errors()
    def begin(self, run: Run) -> bool:
        """Begin or continue a run; a local experiment keeps its files beside the database."""
        found = self._client.get_experiment_by_name(run.experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            number = found.experiment_id
            raise TrackingError(
                f"experiment {run.experiment!r} is deleted; restore it with mlflow experiments restore -x {number}, "
                "or name another experiment"
            )
        experiment = (
            found.experiment_id
            if found is not None
            else self._client.create_experiment(run.experiment, artifact_location=artefact_location(self._uri))
        )
        same = f"tags.`{run.key}` = '{run.tags[run.key]}'" if run.key else ""
        earlier = self._client.search_runs([experiment], same, max_results=1) if same else []
        if not earlier:
            self.run_id = self._client.create_run(experiment, run_name=run.name, tags=dict(run.tags)).info.run_id
            return False
        self.run_id = earlier[0].info.run_id
        if earlier[0].info.status == "FINISHED":
            return True
        self._client.update_run(self.run_id, status="RUNNING")
        return False

    @store_errors()
    def last_step(self, metric: str) -> int:
        """As in `RunLog`."""
        return max((point.step for point in self._client.get_metric_history(self.run_id, metric)), default=0)

    @store_errors()
    def parameters(self, values: Mapping[str, object]) -> None:
        """As in `RunLog`: the parameters of an MLflow run cannot change."""
        named = {known: str(values[name]) for name, known in tracking_names(values).items()}
        logged = self._client.get_run(self.run_id).data.params
        self.tags({f"resumed.{name}": value for name, value in named.items() if logged.get(name, value) != value})
        new = [self._entities.Param(name, value) for name, value in named.items() if name not in logged]
        for part in _parts(new, _PARAMETERS_PER_CALL):
            self._client.log_batch(self.run_id, params=part)

    @store_errors()
    def metrics(self, by_step: Mapping[int, Mapping[str, float]]) -> None:
        """As in `RunLog`."""
        now = time.time_ns() // 1_000_000
        named = tracking_names(name for values in by_step.values() for name in values)
        points = [
            self._entities.Metric(named[name], value, now, step)
            for step, values in by_step.items()
            for name, value in values.items()
        ]
        for part in _parts(points, _METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=part)

    @store_errors()
    def tags(self, values: Mapping[str, str]) -> None:
        """As in `RunLog`."""
        for name, value in values.items():
            self._client.set_tag(self.run_id, name, value)

    @store_errors()
    def file(self, path: Path, folder: str | None = None) -> None:
        """As in `RunLog`."""
        self._client.log_artifact(self.run_id, str(path), folder)

    @store_errors()
    def finish(self) -> None:
        """As in `RunLog`."""
        self._client.set_terminated(self.run_id, "FINISHED")

    def fail(self) -> None:
        """As in `RunLog`."""
        with suppress(TrackingError), store_errors():
            self._client.set_terminated(self.run_id, "FAILED")


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))
