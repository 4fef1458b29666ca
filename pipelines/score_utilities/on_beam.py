"""`score_utilities` on a Beam runner."""

import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsList
from apache_beam.utils.shared import Shared

from clara.storage import folders, paths
from clara.storage.folders import atomic_write
from pipelines.engines.runner import execute
from pipelines.score_utilities.job import ScoringJob
from pipelines.score_utilities.scoring import Scorer, score_shard

_ENTRIES = ".entries.json"


class ScoreShard(beam.DoFn):
    """Shard number → `score_shard`."""

    def __init__(self, job: ScoringJob, num_shards: int) -> None:
        self._job, self._num_shards = job, num_shards
        self._shared = Shared()

    def process(self, number: int) -> Iterator[dict[str, Any]]:
        """Score one shard."""
        yield score_shard(self._job, number, self._num_shards, lambda: self._shared.acquire(lambda: Scorer(self._job)))


def score_on_beam(job: ScoringJob, num_shards: int, pipeline: beam.Pipeline) -> list[dict[str, Any]]:
    """What `score_shard` returns for all shards, scored by the runner of a pipeline.

    Raises:
        InputError: a worker's.
    """
    found = (
        pipeline
        | "shards" >> beam.Create(range(num_shards))
        | "spread" >> beam.Reshuffle()
        | "score" >> beam.ParDo(ScoreShard(job, num_shards))
    )
    (
        pipeline
        | "once" >> beam.Create([None])
        | "collect" >> beam.Map(_collect, AsList(found), paths.join(job.output, _ENTRIES))
    )
    execute(pipeline)
    return list(json.loads(folders.folder(job.output).read(_ENTRIES) or b"[]"))


def _collect(_: None, entries: list[dict[str, Any]], path: str) -> None:
    atomic_write(path, json.dumps(entries))
