"""The synthesis job from the arguments: defaults, checks and settings."""

import argparse
import functools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.config.model import Prompts
from clara.endpoints import check_url
from clara.errors import InputError
from clara.model.backbone_files import tokenizer_hash
from clara.storage.cache import cache_directory
from clara.storage.manifest import hash_of
from clara.storage.paths import absolute, is_url
from pipelines.corpus.arguments import given_fields
from pipelines.corpus.chunking import Tokens, check_limits
from pipelines.corpus.chunks import folder_tokens
from pipelines.corpus.filters import make_filters
from pipelines.corpus.near_duplicates import make_min_hash_settings
from pipelines.corpus.splits import Unit, describe
from pipelines.engines.names import LOCAL, SPARK
from pipelines.synthesize.defaults import ENDPOINT_DEFAULTS, FOLDER_DEFAULTS
from pipelines.synthesize.dialogues import KINDS, Settings
from pipelines.synthesize.endpoint_settings import EndpointSettings
from pipelines.synthesize.estimate import pieces
from pipelines.synthesize.folder_settings import FolderSettings
from pipelines.synthesize.outcome import Chunking, SynthesisJob
from pipelines.synthesize.prompts import load_templates
from pipelines.synthesize.summary import JOB

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


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
    check_url(args.model, "--model")
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
    from pipelines.synthesize.endpoint_client import only_model  # imports openai, which a dry run need not wait for

    return EndpointSettings(**{**vars(settings), "name": only_model(settings)})


def _kinds_of(text: str) -> tuple[str, ...]:
    found = [kind.strip() for kind in text.split(",") if kind.strip()]
    if not found or set(found) - set(KINDS):
        raise InputError(f"--kinds {text!r}: expected some of {', '.join(KINDS)}, with commas between")
    return tuple(kind for kind in KINDS if kind in found)


def _tokens_of(folder: str) -> Tokens:
    return folder_tokens(folder, Prompts())


def make_job(args: argparse.Namespace, units: Sequence[Unit]) -> SynthesisJob:
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
        min_hash=make_min_hash_settings(args.near_duplicates),
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
    return SynthesisJob(
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


def check_places(args: argparse.Namespace, options: "PipelineOptions | None") -> None:
    """Refuse paths that the machines of an engine cannot have.

    Args:
        args: of the command.
        options: of Beam; None for a local run without arguments for Beam.

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
    if options and args.runner == SPARK:
        from pipelines.engines import spark  # imports Beam

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
