"""What `synthesize` does with its arguments: resolve them, estimate the cost, run the job, report."""

import argparse
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.errors import InputError
from clara.storage.manifest import read_manifest, up_to_date
from clara.storage.paths import Name, is_url
from clara.storage.transfer import published
from pipelines.corpus.arguments import given_fields
from pipelines.corpus.splits import Unit, find_units
from pipelines.engines.names import DATAFLOW, LOCAL
from pipelines.job.artefact_job import ArtefactJob, invalidate_manifest, nothing
from pipelines.job.completion import read_outcome, report_counts
from pipelines.job.locks import Lease, locked
from pipelines.job.progress import progress_bar
from pipelines.job.tracking import open_run_log
from pipelines.synthesize.dialogues import FAILED
from pipelines.synthesize.endpoint_settings import EndpointSettings
from pipelines.synthesize.estimate import Cost, total_cost
from pipelines.synthesize.job import check_places, make_job, refuse_others
from pipelines.synthesize.outcome import SynthesisJob, remove_work
from pipelines.synthesize.reply_cache import FILE as CACHE_FILE
from pipelines.synthesize.shards import WORK
from pipelines.synthesize.summary import KIND, SPENDING, report_examples, spent_of

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions


def estimate(job: SynthesisJob, units: Sequence[Unit], args: argparse.Namespace) -> dict[str, Any]:
    """The recipe, the number of chunks, and what they may cost; reads the corpus on this machine."""
    num_chunks, *costs = total_cost(units, job)
    found: dict[str, Any] = {"chunks": num_chunks}
    for name, cost in zip(("at most", "expected"), costs, strict=True):
        found[name] = asdict(cost) | {"cost": round(cost.price(args.price_prompt, args.price_reply), 4)}
        if args.requests_per_minute:
            found[name]["minutes_at_least"] = round(cost.requests / args.requests_per_minute, 1)
    return {**job.recipe, "estimated": found, "output": args.output}


def run(job: SynthesisJob, units: Sequence[Unit], pipeline: "beam.Pipeline", *, quiet: bool = False) -> dict[str, Any]:
    """Run the job on a pipeline that is given. Returns the counts.

    Raises:
        InputError: the job says what is wrong with its input or its model.
    """
    from pipelines.engines.runner import execute
    from pipelines.synthesize.graph import add_synthesis_job

    output = Path(job.output)
    started = time.time()
    add_synthesis_job(pipeline, units, job)
    with progress_bar(output / WORK, quiet=quiet, doing="ask"):
        execute(pipeline)
    counts = read_outcome(output)
    finish(output)
    return {**counts, "seconds": round(time.time() - started, 1)}


def finish(output: Path) -> None:
    """Remove what finished EXAMPLES don't need."""
    remove_work(output, {entry["path"] for entry in read_manifest(output, KIND)["files"]})


def print_spending(output: Path, price_prompt: float, price_reply: float) -> None:
    """Print what the run has sent and paid, and what all replies that are kept have cost."""
    for name, found in spent_of(output).items():
        cost = Cost(0, found["prompt_tokens"], found["reply_tokens"]).price(price_prompt, price_reply)
        amounts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items() if value)
        print(f"{name:>28}  {amounts or 'nothing'}, cost {cost:.4f}")


def retries(args: argparse.Namespace, output: Name) -> bool:
    """Whether finished EXAMPLES are to be completed by what the model did not answer."""
    return bool(args.retry_failed and read_manifest(output, KIND)["counts"].get(FAILED))


def _beam_options(args: argparse.Namespace, beam_arguments: Sequence[str]) -> "PipelineOptions":
    # Beam warns of every cloud that is not installed when it is imported.
    logging.disable(logging.WARNING)
    from pipelines.engines.runner import beam_options

    logging.disable(logging.NOTSET)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    return beam_options(beam_arguments, LOCAL if args.dry_run else args.runner, args.num_workers)


def make(
    job: SynthesisJob, units: Sequence[Unit], args: argparse.Namespace, options: "PipelineOptions", lease: Lease | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the job, and publish its result where the output is a URL. Returns the counts, and what was sent and paid.

    Raises:
        InputError: another job uses the reply cache, or as raised by `run`.
    """
    from pipelines.engines.runner import make_pipeline

    with contextlib.ExitStack() as stack:
        if job.cache != job.output:
            stack.enter_context(locked(job.cache, "--cache"))
        invalidate_manifest(job.output, args.overwrite or up_to_date(job.output, KIND, job.recipe))
        place = stack.enter_context(published(job.output))
        if (
            lease and up_to_date(place, KIND, job.recipe) and not retries(args, place)
        ):  # it was made, and the copy to the URL cut short
            return dict(read_manifest(place, KIND)["counts"]), spent_of(place)
        if lease:
            invalidate_manifest(place, True)
        (place / SPENDING).unlink(missing_ok=True)
        try:
            counts = run(replace(job, output=str(place)), units, make_pipeline(options, args.runner))
        finally:
            print_spending(place, args.price_prompt, args.price_reply)
        spent = spent_of(place)
        if lease:
            lease.check()
    return counts, spent


def synthesize(args: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status.

    Raises:
        InputError: of the arguments, the input, the model or the output.
    """
    if args.runner == DATAFLOW:
        raise InputError(
            f"--runner {args.runner}: its machines share no directory, which --output and --cache are; run on this "
            "machine or on Spark"
        )
    # Beam takes seconds to import: a local run needs it only if something is to be asked.
    options = _beam_options(args, beam_arguments) if beam_arguments or args.runner != LOCAL else None
    refuse_others(args.config.synthesis, args.overrides)
    check_places(args, options)
    units = find_units(args.input, args.format, given_fields(args))
    job = make_job(args, units)
    if args.tracking_uri and not args.dry_run:
        open_run_log(args.tracking_uri)  # hours before it is needed

    def tidy() -> None:
        if not is_url(job.output) and (Path(job.output) / WORK).exists():  # killed between its manifest and its end
            with locked(job.output):
                finish(Path(job.output))

    def report(result: tuple[dict[str, Any], dict[str, Any]]) -> None:
        counts, spent = result
        remedy = "--retry-failed asks again for what the model did not answer" if counts.get(FAILED) else ""
        report_counts(counts, args.output, remedy, fields=given_fields(args))
        prices = args.price_prompt, args.price_reply
        report_examples(args.output, counts, spent, prices, args.tracking_uri, args.tracking_experiment)
        kept = (
            f"; replies are kept in {Path(job.cache) / CACHE_FILE}" if isinstance(job.model, EndpointSettings) else ""
        )
        print(f"{args.output}: {counts['examples']} examples{kept}")

    return ArtefactJob(
        output=args.output,
        kind=KIND,
        plan=lambda: estimate(job, units, args),
        recipe=lambda: job.recipe,
        prepare=nothing,
        write=lambda _, lease: make(job, units, args, options or _beam_options(args, ()), lease),
        report=report,
        tidy=tidy,
        must_run=lambda: retries(args, job.output),
    ).run(dry_run=args.dry_run)
