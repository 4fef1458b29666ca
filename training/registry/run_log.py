"""A training run in the tracking store: one run each, continued if training resumes. Without `tracking.uri`, none."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from clara.config.tree import JOINT, Config, Tracking
from clara.errors import InputError
from clara.storage.manifest import manifest_hash, read_manifest
from clara.tracking.names import flatten
from clara.tracking.run_log import Run, TrackingError, failing
from training.loop.follow import following
from training.loop.lines import parse
from training.registry.curves import draw
from training.registry.store import open_run_log

logger = logging.getLogger(__name__)
_RUN_TAG = "clara.run"
_EVERY_SECONDS = 10.0


def lineage(config: Config) -> dict[str, str]:
    """Manifest hashes of what a run reads, and MEMORY's fingerprint, as tags."""
    tags = {}
    for name in ("checkpoint", "examples", "questions", "memory", "index"):
        if path := getattr(config, name):
            tags[f"clara.{name}"] = path
            tags[f"clara.{name}.hash"] = manifest_hash(path)
            if fingerprint := read_manifest(path)["fingerprint"]:
                tags[f"clara.{name}.fingerprint"] = fingerprint
    return tags


class Tracker:
    """Sends what a training run reports to its run log."""

    def __init__(
        self, settings: Tracking, run_name: str, parameters: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Begin the run, or continue the one with that name.

        Args:
            settings: URI and experiment.
            run_name: the run's own directory: equal recipes are one run.
            parameters: resolved settings.
            tags: lineage.

        Raises:
            InputError: the store cannot be reached or written.
        """
        self._waiting: list[str] = []
        self._uri, self._warned = settings.uri, False
        try:
            self.log = open_run_log(settings.uri)
            self.log.begin(Run(settings.experiment, run_name, {_RUN_TAG: run_name, **tags}, key=_RUN_TAG))
            with failing(self.log):
                self._last_step = self.log.last_step("loss")
                self.log.parameters(parameters)
        except TrackingError as error:
            raise InputError(
                f"tracking.uri {settings.uri!r}: cannot be used ({error}); give sqlite:///PATH or a server's URL, or "
                "leave it empty"
            ) from error
        self.run_id = self.log.run_id

    def log_lines(self, lines: Sequence[str]) -> None:
        """Log lines of a metrics file, without the steps that were logged before.

        While the store does not answer, lines wait for the next call.
        """
        self._waiting += lines
        try:
            self._send()
        except TrackingError as error:
            if not self._warned:
                logger.warning(
                    "tracking.uri %r does not answer (%s); training continues, "
                    "and figures are sent when it answers again",
                    self._uri,
                    error,
                )
            self._warned = True

    def _send(self) -> None:
        steps = {step: values for step, values in parse(self._waiting).items() if step > self._last_step}
        self.log.metrics(steps)
        self._last_step = max([self._last_step, *steps])
        self._waiting, self._warned = [], False

    def finish(
        self,
        report: Path,
        metrics: Path,
        pictures: Path,
        tags: Mapping[str, str],
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Log the report, the curves, the outputs as tags and figures of the whole run, and end the run.

        Raises:
            InputError: the store does not answer.
        """
        try:
            self._send()
            self.log.metrics({self._last_step: figures or {}})
            self.log.tags(tags)
            self.log.file(report)
            for picture in draw(parse(metrics.read_text(encoding="utf-8").splitlines()), pictures):
                self.log.file(picture, "curves")
            self.log.finish()
        except TrackingError as error:
            raise InputError(
                f"tracking.uri {self._uri!r} does not answer ({error}); the run is done and is stored beside {report}: "
                "give the same command again when it answers, and the run is logged without being trained again"
            ) from error

    def fail(self) -> None:
        """End the run as failed, if the store answers. The same command continues it."""
        self.log.fail()


@contextmanager
def tracked(config: Config, run_name: str, metrics: Path) -> Iterator[Tracker | None]:
    """Inside, the figures that a run appends to its metrics file are logged; None without `tracking.uri`."""
    if not config.tracking.uri:
        yield None
        return
    tracker = Tracker(config.tracking, run_name, flatten(config.part(JOINT)), lineage(config))
    logger.info("run %s in %s", tracker.run_id, config.tracking.uri)
    with failing(tracker.log), following(metrics, tracker.log_lines, from_start=True, every_seconds=_EVERY_SECONDS):
        yield tracker
