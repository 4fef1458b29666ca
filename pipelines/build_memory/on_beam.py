"""`build_memory` on a Beam runner: checks its options, submits or runs the graph."""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from pipelines.build_memory.graph import add_memory_job
from pipelines.build_memory.outcome import MemoryJob, remove_leftovers
from pipelines.corpus.splits import Unit
from pipelines.engines import dataflow, spark
from pipelines.engines.runner import beam_options, execute, make_pipeline
from pipelines.job.completion import read_outcome
from pipelines.job.progress import progress_bar

_LOG = logging.getLogger(__name__)


class BeamEngine:
    """A runner with its options."""

    def __init__(self, args: argparse.Namespace, beam_arguments: Sequence[str]) -> None:
        """Check everything that can be checked before the input is read.

        Raises:
            InputError: an argument is unknown, or the machines of the engine cannot see a path.
        """
        logging.getLogger("apache_beam").setLevel(logging.ERROR)
        self._runner = args.runner
        self._options = beam_options(beam_arguments, args.runner, args.num_workers)
        self._check_paths(args)

    def _check_paths(self, args: argparse.Namespace) -> None:
        local = [path for path in args.input if "://" not in path]
        paths = {"output": args.output, "checkpoint": args.checkpoint, "backbone": args.backbone, "update": args.update}
        if args.runner == spark.RUNNER:
            relative = [path for path in local if not Path(path).is_absolute()]
            spark.check_paths(self._options, {**paths, "input": relative[0] if relative else ""})
        elif args.runner == dataflow.RUNNER:
            dataflow.check_paths({**paths, "input": local[0] if local else ""})

    def rehearse(self, job: MemoryJob, units: Sequence[Unit]) -> bool:
        """Print the steps requested from Dataflow if Beam's `--dry_run` is given. Returns whether it is."""
        dataflow.prepare_gpu(self._options, job.accelerator)
        if not dataflow.is_rehearsal(self._options, self._runner):
            return False
        print(json.dumps(dataflow.graph(self.submit(job, units)), indent=1))
        return True

    def submit(self, job: MemoryJob, units: Sequence[Unit]) -> beam.Pipeline:
        """Submit the job without waiting for its end."""
        pipeline = make_pipeline(self._options, self._runner)
        add_memory_job(pipeline, units, job)
        pipeline.run()
        return pipeline

    def run(self, job: MemoryJob, units: Sequence[Unit]) -> dict[str, Any]:
        """See `run`."""
        return run(job, units, make_pipeline(self._options, self._runner))


def run(job: MemoryJob, units: Sequence[Unit], pipeline: beam.Pipeline, *, quiet: bool = False) -> dict[str, Any]:
    """Run the job on a given pipeline. Returns the counts.

    Raises:
        InputError: the input, the checkpoint or the output is not usable.
    """
    started = time.time()
    add_memory_job(pipeline, units, job)
    with progress_bar(job.output, quiet=quiet):
        _LOG.info("counters of the runner: %s", execute(pipeline))
    counts = read_outcome(job.output)
    remove_leftovers(job.output)
    return {**counts, "seconds": round(time.time() - started, 1)}
