"""What `synthesize` does with its arguments: resolve them, estimate the cost, run the job, report."""

import argparse
import contextlib
import functools
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from clara.config.model import Prompts
from clara.errors import InputError
from clara.model.backbone_files import tokenizer_hash
from clara.storage.artefact import hash_of, read_manifest, up_to_date
from clara.storage.cache import cache_directory
from clara.storage.paths import Name, absolute, is_url
from clara.storage.transfer import published
from pipelines.corpus.arguments import given_fields
from pipelines.corpus.chunking import Tokens, check_limits
from pipelines.corpus.chunks import folder_tokens
from pipelines.corpus.filters import make_filters
from pipelines.corpus.near_duplicates import make_likeness
from pipelines.corpus.splits import Unit, describe, find_units
from pipelines.engines import dataflow, spark
from pipelines.engines.names import LOCAL
from pipelines.engines.runner import beam_options, execute, make_pipeline
from pipelines.job.artefact_job import ArtefactJob, invalidate_manifest, nothing
from pipelines.job.completion import read_outcome, tell_counts
from pipelines.job.locks import Lease, locked
from pipelines.job.progress import progress_bar
from pipelines.job.tracking import open_run_log
from pipelines.synthesize.defaults import ENDPOINT_DEFAULTS, FOLDER_DEFAULTS
from pipelines.synthesize.dialogues import FAILED, KINDS, Settings
from pipelines.synthesize.endpoint import only_model
from pipelines.synthesize.endpoint_settings import EndpointSettings, check_url
from pipelines.synthesize.estimate import Cost, pieces
from pipelines.synthesize.graph import add_estimate, add_synthesis_job
from pipelines.synthesize.local_model import FolderSettings
from pipelines.synthesize.outcome import Chunking, Job, remove_work
from pipelines.synthesize.prompts import load_templates
from pipelines.synthesize.reply_cache import FILE as CACHE_FILE
from pipelines.synthesize.shards import WORK
from pipelines.synthesize.summary import JOB, KIND, SPENDING, spent_of, tell

_LOG = logging.getLogger(__name__)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def resolve(args: argparse.Namespace) -> None:
    """Fill in defaults, and refuse what can't be meant.

    Raises:
        InputError: a number out of range, or a flag of an endpoint with a folder's model, or the other way round.
    """
    at_endpoint = "://" in args.model
    for defaults, fits in ((ENDPOINT_DEFAULTS, at_endpoint), (FOLDER_DEFAULTS, not at_endpoint)):
        for name, default in defaults.items():
            if not fits and getattr(args, name) is not None:
                what = "a folder's model" if at_endpoint else "an endpoint"
                raise InputError(f"{_flag(name)}: is of use to {what} only, and --model is {args.model}; leave it out")
            if getattr(args, name) is None:
                setattr(args, name, default)
    least = {
        "max_rounds": 0,
        "max_questions": 1,
        "attempts": 1,
        "max_reply_tokens": 16,
        "limit": 0,
        "num_shards": 0,
        "num_workers": 0,
    }
    least |= {
        "concurrency": 1,
        "tries": 1,
        "requests_per_minute": 0,
        "tokens_per_minute": 0,
        "price_prompt": 0,
        "price_reply": 0,
    }
    least |= {"temperature": 0, "batch_tokens": 1, "copies": 0, "retry_seconds": 0, "timeout": 0}
    for name, bound in least.items():
        if not getattr(args, name) >= bound:
            raise InputError(f"{_flag(name)} {getattr(args, name)}: expected {bound} or more")
    if not args.timeout:
        raise InputError("--timeout 0: expected more than 0 seconds")
    check_limits(args.max_tokens, args.overlap_tokens)


def _extra_body(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"--extra-body {text!r}: not JSON ({error}); expected an object, as '{{\"top_p\": 0.9}}'"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"--extra-body {text!r}: expected a JSON object, as '{{\"top_p\": 0.9}}'")
    if taken := sorted({"model", "messages", "stream", "n"} & set(found)):
        raise InputError(f"--extra-body: {', '.join(taken)} can't be set; leave it out")
    return found


def _model_of(args: argparse.Namespace) -> EndpointSettings | FolderSettings:
    extra = _extra_body(args.extra_body)
    if "://" not in args.model:
        if set(extra) - {"chat_template_kwargs"} or not isinstance(extra.get("chat_template_kwargs", {}), dict):
            raise InputError(
                "--extra-body: a folder's model takes an object of chat_template_kwargs alone; leave the rest out"
            )
        given = tuple(sorted(extra.get("chat_template_kwargs", {}).items()))
        return FolderSettings(
            str(Path(args.model).resolve()), args.device, args.dtype, args.max_reply_tokens, args.batch_tokens, given
        )
    check_url(args.model)
    if (
        args.key_variable != ENDPOINT_DEFAULTS["key_variable"]
        and args.runner == LOCAL
        and not os.environ.get(args.key_variable)
    ):
        raise InputError(f"--key-variable {args.key_variable}: no such environment variable, or it is empty; export it")
    settings = EndpointSettings(
        url=args.model.rstrip("/"),
        name=args.model_name,
        key_variable=args.key_variable,
        temperature=args.temperature,
        max_reply_tokens=args.max_reply_tokens,
        extra_body=json.dumps(extra, sort_keys=True),
        system_role=not args.no_system_role,
        concurrency=args.concurrency,
        timeout_seconds=args.timeout,
        tries=args.tries,
        retry_seconds=args.retry_seconds,
        requests_per_minute=args.requests_per_minute,
        tokens_per_minute=args.tokens_per_minute,
    )
    if settings.name or args.dry_run:
        return settings
    return EndpointSettings(**{**vars(settings), "name": only_model(settings)})


def _kinds_of(text: str) -> tuple[str, ...]:
    found = [kind.strip() for kind in text.split(",") if kind.strip()]
    if not found or set(found) - set(KINDS):
        raise InputError(f"--kinds {text!r}: expected some of {', '.join(KINDS)}, with commas between")
    return tuple(kind for kind in KINDS if kind in found)


def _tokens_of(folder: str) -> Tokens:
    return folder_tokens(folder, Prompts())


def make_job(args: argparse.Namespace, units: Sequence[Unit]) -> Job:
    """The job of these arguments.

    Raises:
        InputError: a value out of range, prompts or a model that can't be used.
    """
    resolve(args)
    model, templates = _model_of(args), load_templates(args.prompts)
    settings = Settings(_kinds_of(args.kinds), args.coverage, args.max_rounds, args.max_questions, args.attempts)
    tokenizer = args.tokenizer or (model.path if isinstance(model, FolderSettings) else "")
    chunking = Chunking(
        fields=given_fields(args),
        filters=make_filters(args.min_characters, args.max_characters, args.language, args.max_symbol_ratio),
        limit=args.limit,
        likeness=make_likeness(args.near_duplicates),
        load_tokens=functools.partial(_tokens_of, str(Path(tokenizer).resolve())) if tokenizer else pieces,
        max_tokens=args.max_tokens,
        overlap_tokens=args.overlap_tokens,
    )
    asked = {"model": model.identity(), "prompts": templates.version, "settings": asdict(settings)}
    recipe = {
        "job": JOB,
        "input": describe(units),
        "format": args.format,
        "fields": vars(chunking.fields),
        "filters": chunking.filters.settings(),
        "near_duplicates": args.near_duplicates,
        "limit": args.limit,
        "max_tokens": args.max_tokens,
        "overlap_tokens": args.overlap_tokens,
        "tokenizer": tokenizer_hash(tokenizer) if tokenizer else "estimated",
        **asked,
    }
    one_copy = isinstance(model, FolderSettings) and model.device == "cuda"
    return Job(
        output=absolute(args.output),
        chunking=chunking,
        model=model,
        templates=templates,
        settings=settings,
        cache=_cache_of(args),
        num_shards=args.num_shards,
        copies=args.copies or int(one_copy),
        max_failures=args.max_failures,
        recipe=recipe,
        key=hash_of(asked),
    )


def _cache_of(args: argparse.Namespace) -> str:
    """Where paid replies are kept: on this machine, also where the EXAMPLES go to a URL."""
    if not args.cache and is_url(args.output):
        return str(cache_directory() / "replies" / hash_of(absolute(args.output)))
    return absolute(args.cache or args.output)


def check_places(args: argparse.Namespace, options: PipelineOptions) -> None:
    """Refuse paths that the machines of an engine cannot have.

    Raises:
        InputError: names the flag.
    """
    if is_url(args.cache or ""):
        raise InputError(
            f"--cache {args.cache}: a URL; replies are appended to a file there, so give a directory of this machine"
        )
    if is_url(args.output) and args.runner != LOCAL:
        raise InputError(
            f"--output {args.output}: a URL, to which the finished EXAMPLES are copied from the machine that made "
            f"them; with --runner {args.runner} "
            "several make them: give a directory that all of them see"
        )
    if args.runner == spark.RUNNER:
        model = "" if "://" in args.model else args.model
        far = [path for path in args.input if not path.startswith("/")]
        paths = {
            "output": args.output,
            "model": model,
            "tokenizer": args.tokenizer,
            "cache": args.cache or "",
            "input": far[0] if far else "",
        }
        spark.check_paths(options, paths)


def estimate(job: Job, units: Sequence[Unit], args: argparse.Namespace, options: PipelineOptions) -> dict[str, Any]:
    """The recipe, the number of chunks, and what they may cost; reads the corpus on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/estimate.json"
        pipeline = make_pipeline(options, LOCAL)
        add_estimate(pipeline, units, job, path)
        execute(pipeline)
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    for name in ("at most", "expected"):
        cost = Cost(**found[name])
        found[name]["cost"] = round(cost.price(args.price_prompt, args.price_reply), 4)
        if args.requests_per_minute:
            found[name]["minutes_at_least"] = round(cost.requests / args.requests_per_minute, 1)
    return {**job.recipe, "estimated": found, "output": args.output}


def run(job: Job, units: Sequence[Unit], pipeline: beam.Pipeline, *, quiet: bool = False) -> dict[str, Any]:
    """Run the job on a pipeline that is given. Returns the counts.

    Raises:
        InputError: the job says what is wrong with its input or its model.
    """
    output = Path(job.output)
    started = time.time()
    add_synthesis_job(pipeline, units, job)
    with progress_bar(output / WORK, started, quiet=quiet, doing="ask"):
        execute(pipeline)
    counts = read_outcome(output)
    finish(output)
    return {**counts, "seconds": round(time.time() - started, 1)}


def finish(output: Path) -> None:
    """Remove what finished EXAMPLES don't need."""
    remove_work(output, {entry["path"] for entry in read_manifest(output, KIND)["files"]})


def tell_spending(output: Path, price_prompt: float, price_reply: float) -> None:
    """Print what the run has sent and paid, and what all replies that are kept have cost."""
    for name, found in spent_of(output).items():
        cost = Cost(0, found["prompt_tokens"], found["reply_tokens"]).price(price_prompt, price_reply)
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items() if value)
        print(f"{name:>28}  {told or 'nothing'}, cost {cost:.4f}")


def retries(args: argparse.Namespace, output: Name) -> bool:
    """Whether finished EXAMPLES are to be completed by what the model did not answer."""
    return bool(args.retry_failed and read_manifest(output, KIND)["counts"].get(FAILED))


def make(
    job: Job, units: Sequence[Unit], args: argparse.Namespace, options: PipelineOptions, lease: Lease | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the job, and publish its result where the output is a URL. Returns the counts, and what was sent and paid.

    Raises:
        InputError: another job uses the reply cache, or as raised by `run`.
    """
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
            tell_spending(place, args.price_prompt, args.price_reply)
        spent = spent_of(place)
        if lease:
            lease.check()
    return counts, spent


def synthesize(args: argparse.Namespace, beam_arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status.

    Raises:
        InputError: of the arguments, the input, the model or the output.
    """
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    if args.runner == dataflow.RUNNER:
        raise InputError(
            f"--runner {args.runner}: its machines share no directory, which --output and --cache are; run on this "
            "machine or on Spark"
        )
    options = beam_options(beam_arguments, LOCAL if args.dry_run else args.runner, args.num_workers)
    check_places(args, options)
    units = find_units(args.input, args.format)
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
        tell_counts(counts, args.output, remedy)
        prices = args.price_prompt or 0.0, args.price_reply or 0.0
        tell(args.output, counts, spent, prices, args.tracking_uri, args.tracking_experiment)
        kept = (
            f"; replies are kept in {Path(job.cache) / CACHE_FILE}" if isinstance(job.model, EndpointSettings) else ""
        )
        print(f"{args.output}: {counts['examples']} examples{kept}")

    return ArtefactJob(
        output=args.output,
        kind=KIND,
        plan=lambda: estimate(job, units, args, options),
        recipe=lambda: job.recipe,
        prepare=nothing,
        write=lambda _, lease: make(job, units, args, options, lease),
        report=report,
        tidy=tidy,
        must_run=lambda: retries(args, job.output),
    ).run(dry_run=args.dry_run)
