"""What `build_memory` does with its arguments: resolve them, run the job where nothing else writes, and tell what came of it."""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam

from clara.memory.shards import KIND
from clara.storage.artefact import MANIFEST
from pipelines.build_memory.graph import add_memory_job
from pipelines.build_memory.job import check_places, make_job
from pipelines.build_memory.local.graph import add_local_job
from pipelines.build_memory.local.records import ReadSoFar
from pipelines.build_memory.outcome import Job, remove_leftovers
from pipelines.build_memory.summary import tell
from pipelines.corpus.spill import begin_spill, remove_spill
from pipelines.corpus.splits import Unit, find_units
from pipelines.engines import dataflow
from pipelines.engines.local_workers import again_when_killed
from pipelines.engines.runner import beam_options, execute, make_pipeline, num_cores
from pipelines.job.artefact_job import ArtefactJob, invalidate_manifest, nothing
from pipelines.job.completion import read_outcome, tell_counts
from pipelines.job.locks import Lease, locked
from pipelines.job.progress import progress_bar
from pipelines.job.tracking import open_run_log

_LOG = logging.getLogger(__name__)


def run(job: Job, units: Sequence[Unit], pipeline: beam.Pipeline, *, quiet: bool = False) -> dict[str, Any]:
    """Run the job on a pipeline that is given. Returns the counts.

    Raises:
        InputError: the job says what is wrong with its input.
    """
    started = time.time()
    (add_local_job if job.spill else add_memory_job)(pipeline, units, job)
    reading = ReadSoFar(job.spill, len(units)) if job.spill else None
    with progress_bar(job.output, started, quiet=quiet, reading=reading):
        counted = execute(pipeline)
    _LOG.info("counters of the runner: %s", counted)
    counts = read_outcome(job.output)
    remove_leftovers(job.output)
    return {**counts, "seconds": round(time.time() - started, 1)}


def submit(job: Job, units: Sequence[Unit], pipeline: beam.Pipeline) -> beam.Pipeline:
    """Give the job to the pipeline's runner, and don't wait."""
    add_memory_job(pipeline, units, job)
    pipeline.run()
    return pipeline


def build(args: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status.

    Raises:
        InputError: of the arguments, the input, the checkpoint or the output.
    """
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    options = beam_options(beam_arguments, args.runner, args.num_workers)
    check_places(args, options)
    units = find_units(args.input, args.format)
    job = make_job(args, units)
    if not args.dry_run:
        dataflow.prepare_gpu(options, job.accelerator)
        if dataflow.is_rehearsal(options, args.runner):
            print(json.dumps(dataflow.graph(submit(job, units, make_pipeline(options, args.runner))), indent=1))
            return 0
        if args.tracking_uri:
            open_run_log(args.tracking_uri)  # hours before it is needed

    def plan() -> dict[str, Any]:
        workers = args.num_workers or num_cores()
        return {**job.recipe, "fingerprint_hash": job.fingerprint.hash, "units": len(units), "workers": workers}

    def tidy() -> None:
        if job.spill and Path(job.spill).exists():  # the job was killed between its manifest and its end
            with locked(job.output):
                remove_leftovers(job.output)
                remove_spill(job.spill)

    def write(_: None, lease: Lease | None) -> dict[str, Any] | None:
        """Counts; None where the job runs on elsewhere."""
        if args.no_wait:
            submit(job, units, make_pipeline(options, args.runner))
            return None
        if job.spill:
            begin_spill(job.spill, job.recipe)
        held = replace(job, lease=lease)
        counts = again_when_killed(lambda: run(held, units, make_pipeline(options, args.runner)), args.output)
        if job.spill:
            remove_spill(job.spill)
        return counts

    def report(counts: dict[str, Any] | None) -> None:
        if counts is None:
            print(f"{args.output}: submitted; finished when {MANIFEST} is there")
            return
        tell_counts(counts, args.output)
        tell(args.output, counts, args.tracking_uri, args.tracking_experiment)

    return ArtefactJob(
        output=args.output,
        kind=KIND,
        plan=plan,
        recipe=lambda: job.recipe,
        prepare=nothing,
        clear=lambda: invalidate_manifest(job.output, args.overwrite, job.recipe),
        write=write,
        report=report,
        tidy=tidy,
    ).run(dry_run=args.dry_run)
