"""`build_memory` after parsing: resolve arguments, run the job under a lock, report the result."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.errors import InputError
from clara.memory.shards import KIND
from clara.storage.manifest import MANIFEST
from pipelines.build_memory.job import make_job
from pipelines.build_memory.local.records import ReadSoFar
from pipelines.build_memory.outcome import MemoryJob, remove_leftovers
from pipelines.build_memory.summary import write_summary
from pipelines.corpus.arguments import given_fields
from pipelines.corpus.spill import begin_spill, remove_spill
from pipelines.corpus.splits import Unit, find_units
from pipelines.engines.names import DATAFLOW, LOCAL
from pipelines.engines.process_pool import num_cores, retry_on_worker_death
from pipelines.job.artefact_job import ArtefactJob, invalidate_manifest, nothing
from pipelines.job.completion import report_counts
from pipelines.job.locks import Lease, locked
from pipelines.job.progress import progress_bar
from pipelines.job.tracking import open_run_log

if TYPE_CHECKING:
    from pipelines.build_memory.on_beam import BeamEngine


def _beam_engine(args: argparse.Namespace, beam_arguments: Sequence[str]) -> "BeamEngine | None":
    """The runner of Beam; None for the local run, for which Beam is imported only if there are arguments for it.

    Raises:
        InputError: the arguments are not valid.
    """
    if args.no_wait and args.runner != DATAFLOW:
        raise InputError(f"--no-wait: the job of --runner {args.runner} ends with this process; leave it out")
    if args.runner == LOCAL and not beam_arguments:
        return None
    from pipelines.build_memory.on_beam import BeamEngine

    engine = BeamEngine(args, beam_arguments)
    return None if args.runner == LOCAL else engine


def run_here(job: MemoryJob, units: Sequence[Unit], num_workers: int) -> dict[str, Any]:
    """Run the job on this machine; `num_workers` 0: one worker per core. Returns the counts.

    Raises:
        InputError: the input, the checkpoint or the output is not usable.
        BrokenProcessPool: a process was killed.
    """
    from pipelines.build_memory.local.run import run_local  # imports torch, which "up to date" need not wait for

    started = time.time()
    with progress_bar(job.output, quiet=False, reading=ReadSoFar(job.spill, len(units))):
        counts = run_local(job, units, num_workers or num_cores())
    remove_leftovers(job.output)
    return {**counts, "seconds": round(time.time() - started, 1)}


def build(args: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status.

    Raises:
        InputError: the arguments, the input, the checkpoint or the output are not usable.
    """
    engine = _beam_engine(args, beam_arguments)
    units = find_units(args.input, args.format, given_fields(args))
    job = make_job(args, units)
    if not args.dry_run:
        if engine and engine.rehearse(job, units):
            return 0
        if args.tracking_uri:
            open_run_log(args.tracking_uri)  # fails now rather than hours later

    def plan() -> dict[str, Any]:
        workers = args.num_workers or num_cores()
        return {**job.recipe, "fingerprint_hash": job.fingerprint.hash, "units": len(units), "workers": workers}

    def tidy() -> None:
        if job.spill and Path(job.spill).exists():  # the job was killed between its manifest and its end
            with locked(job.output):
                remove_leftovers(job.output)
                remove_spill(job.spill)

    def write(_: None, lease: Lease | None) -> dict[str, Any] | None:
        """Counts; None if the job was submitted to run elsewhere."""
        held = replace(job, lease=lease)
        if engine and args.no_wait:
            engine.submit(job, units)
            return None
        if engine:
            return engine.run(held, units)
        begin_spill(job.spill, job.recipe)
        counts = retry_on_worker_death(lambda: run_here(held, units, args.num_workers), args.output)
        remove_spill(job.spill)
        return counts

    def report(counts: dict[str, Any] | None) -> None:
        if counts is None:
            print(f"{args.output}: submitted; finished when {MANIFEST} is there")
            return
        report_counts(counts, args.output, fields=job.fields)
        write_summary(args.output, counts, args.tracking_uri, args.tracking_experiment)

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
