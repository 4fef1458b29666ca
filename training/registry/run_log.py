"""MLflow: one run for each training run, found again when it is resumed. Nothing happens where `tracking.uri` is empty."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from clara.config.tree import Config, Tracking
from clara.errors import InputError
from clara.storage import artefact
from clara.tracking import artefact_location, flatten, open_tracking, tracking_names
from training.loop.follow import following
from training.loop.lines import parse
from training.registry.curves import draw
from training.registry.store import failures

logger = logging.getLogger(__name__)
_RUN_TAG = "clara.run"
_PARAMETERS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000
_EVERY_SECONDS = 10.0


def lineage(config: Config) -> dict[str, str]:
    """Manifest hashes of what a run reads, and MEMORY's fingerprint, as tags."""
    tags = {}
    for name in ("checkpoint", "examples", "questions", "memory", "index"):
        if path := getattr(config, name):
            tags[f"clara.{name}"] = path
            tags[f"clara.{name}.hash"] = artefact.manifest_hash(path)
            if fingerprint := artefact.read_manifest(path)["fingerprint"]:
                tags[f"clara.{name}.fingerprint"] = fingerprint
    return tags


class Tracker:
    """Writes one MLflow run."""

    def __init__(
        self, settings: Tracking, run_name: str, parameters: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Find the run of that name, or begin it.

        Args:
            settings: URI and experiment.
            run_name: the run's own directory: equal recipes are one run.
            parameters: resolved settings.
            tags: lineage.

        Raises:
            InputError: the store cannot be reached or written.
        """
        from mlflow import MlflowClient

        self._failures = failures()
        self._waiting: list[str] = []
        self._uri, self._told = settings.uri, False
        try:
            self._client = open_tracking(settings.uri, MlflowClient)
            self.run_id = self._find(settings, run_name, tags)
            logged = self._client.get_metric_history(self.run_id, "loss")
        except self._failures as error:
            raise InputError(
                f"tracking.uri {settings.uri!r}: cannot be used ({error}); give sqlite:///PATH or a server's URL, or leave it empty"
            ) from error
        self._last_step = max((metric.step for metric in logged), default=0)
        try:
            self._log_parameters(parameters)
        except BaseException:
            self.fail()
            raise

    def _find(self, settings: Tracking, run_name: str, tags: Mapping[str, str]) -> str:
        client = self._client
        experiment = client.get_experiment_by_name(settings.experiment)
        number = (
            experiment.experiment_id
            if experiment is not None
            else client.create_experiment(settings.experiment, artifact_location=artefact_location(settings.uri))
        )
        found = client.search_runs([number], f"tags.`{_RUN_TAG}` = '{run_name}'", max_results=1)
        if found:
            run_id: str = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            return run_id
        created = client.create_run(number, run_name=run_name, tags={_RUN_TAG: run_name, **tags})
        return str(created.info.run_id)

    def _log_parameters(self, parameters: Mapping[str, str]) -> None:
        """Log what is new. MLflow's parameters can't change: what a resumed run has otherwise (threads, paths) is a tag `resumed.NAME`."""
        from mlflow.entities import Param

        named = tracking_names(parameters)
        parameters = {named[name]: value for name, value in parameters.items()}
        known = self._client.get_run(self.run_id).data.params
        for name, value in parameters.items():
            if name in known and known[name] != value:
                self._client.set_tag(self.run_id, f"resumed.{name}", value)
        items = [Param(name, value) for name, value in parameters.items() if name not in known]
        for begin in range(0, len(items), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self.run_id, params=items[begin : begin + _PARAMETERS_AT_ONCE])

    def log_lines(self, lines: Sequence[str]) -> None:
        """Log lines of a metrics file; steps that the run has already are left out. While the store does not answer, lines wait for the next call."""
        self._waiting += lines
        try:
            self._send()
        except self._failures as error:
            if not self._told:
                logger.warning(
                    "tracking.uri %r does not answer (%s); training goes on, and figures are sent when it does again",
                    self._uri,
                    error,
                )
            self._told = True

    def _send(self) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        steps = {step: values for step, values in parse(self._waiting).items() if step > self._last_step}
        metrics = [Metric(name, value, now, step) for step, values in steps.items() for name, value in values.items()]
        for begin in range(0, len(metrics), _METRICS_AT_ONCE):
            self._client.log_batch(self.run_id, metrics=metrics[begin : begin + _METRICS_AT_ONCE])
        self._last_step = max([self._last_step, *steps])
        self._waiting, self._told = [], False

    def finish(
        self,
        report: Path,
        metrics: Path,
        pictures: Path,
        tags: Mapping[str, str],
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Log the report, the curves, what was made and figures of the whole run, and end the run.

        Raises:
            InputError: the store does not answer.
        """
        try:
            self._finish(report, metrics, pictures, tags, figures or {})
        except self._failures as error:
            raise InputError(
                f"tracking.uri {self._uri!r} does not answer ({error}); the run is done and lies beside {report}: give the same command again "
                "when it answers, and the run is logged without being trained again"
            ) from error

    def _finish(
        self, report: Path, metrics: Path, pictures: Path, tags: Mapping[str, str], figures: Mapping[str, float]
    ) -> None:
        from mlflow.entities import Metric

        self._send()
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.run_id, metrics=[Metric(name, value, now, self._last_step) for name, value in figures.items()]
        )
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)
        self._client.log_artifact(self.run_id, str(report))
        for picture in draw(parse(metrics.read_text(encoding="utf-8").splitlines()), pictures):
            self._client.log_artifact(self.run_id, str(picture), "curves")
        self._client.set_terminated(self.run_id, "FINISHED")

    def fail(self) -> None:
        """End the run as failed, if the store answers; it is taken up again when the command is."""
        with suppress(*self._failures):
            self._client.set_terminated(self.run_id, "FAILED")


@contextmanager
def tracked(config: Config, run_name: str, metrics: Path) -> Iterator[Tracker | None]:
    """Inside, the figures that a run appends to its metrics file go to MLflow; None where no tracking is asked for."""
    if not config.tracking.uri:
        yield None
        return
    tracker = Tracker(config.tracking, run_name, flatten(config.model_dump()), lineage(config))
    logger.info("MLflow run %s in %s", tracker.run_id, config.tracking.uri)
    try:
        with following(metrics, tracker.log_lines, from_start=True, every_seconds=_EVERY_SECONDS):
            yield tracker
    except BaseException:
        tracker.fail()
        raise
