"""The synthesis job from the arguments: checks and settings."""

import argparse
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clara.config.load import Override
from clara.config.model import Prompts
from clara.config.synthesis import Endpoint, Synthesis
from clara.config.tree import Config
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
from pipelines.synthesize.endpoint_settings import EndpointSettings
from pipelines.synthesize.estimate import pieces
from pipelines.synthesize.folder_settings import FolderSettings
from pipelines.synthesize.outcome import Chunking, SynthesisJob
from pipelines.synthesize.prompts import load_templates
from pipelines.synthesize.summary import JOB

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def refuse_others(settings: Synthesis, overrides: Sequence[Override]) -> None:
    """Refuse settings of an endpoint with a folder's model, and the other way round.

    Args:
        settings: what is asked.
        overrides: of the command line. A file may have both tables.

    Raises:
        InputError: names the flag.
    """
    others = ("device", "synthesis.folder") if settings.at_endpoint else ("synthesis.endpoint",)
    for override in overrides:
        if override.key in others or override.key.startswith(tuple(f"{key}." for key in others)):
            what = "a folder's model" if settings.at_endpoint else "an endpoint"
            raise InputError(
                f"{override.name}: is of use to {what} only, and --model is {settings.model}; leave it out"
            )


def _model_of(config: Config, *, dry_run: bool) -> EndpointSettings | FolderSettings:
    settings = config.synthesis
    if not settings.at_endpoint:
        extra = json.loads(settings.extra_body)
        if extra.keys() - {"chat_template_kwargs"} or not isinstance(extra.get("chat_template_kwargs", {}), dict):
            raise InputError(
                "--extra-body: a folder's model takes an object of chat_template_kwargs alone; leave the rest out"
            )
        return FolderSettings(
            **dict(settings.folder),
            path=str(Path(settings.model).resolve()),
            device=config.device,
            max_reply_tokens=settings.max_reply_tokens,
            template_arguments=extra.get("chat_template_kwargs", {}),
        )
    check_url(settings.model, "--model")
    variable = settings.endpoint.key_variable
    by_default = variable == Endpoint.model_fields["key_variable"].default
    if not by_default and config.engine.runner == LOCAL and not os.environ.get(variable):
        raise InputError(f"--key-variable {variable}: no such environment variable, or it is empty; export it")
    model = EndpointSettings(
        **dict(settings.endpoint),
        url=settings.model.rstrip("/"),
        max_reply_tokens=settings.max_reply_tokens,
        extra_body=settings.extra_body,
    )
    if model.name or dry_run:
        return model
    from pipelines.synthesize.endpoint_client import only_model  # imports openai, which a dry run need not wait for

    return model.model_copy(update={"name": only_model(model)})


def _tokens_of(folder: str) -> Tokens:
    return folder_tokens(folder, Prompts())


def make_job(args: argparse.Namespace, units: Sequence[Unit]) -> SynthesisJob:
    """The job of these arguments.

    Raises:
        InputError: a value out of range, prompts or a model that can't be used.
    """
    config: Config = args.config
    settings, max_tokens = config.synthesis, args.max_tokens or config.model.max_document_tokens
    check_limits(max_tokens, args.overlap_tokens)
    model, templates = _model_of(config, dry_run=args.dry_run), load_templates(settings.prompts)
    tokenizer = settings.tokenizer or (model.path if isinstance(model, FolderSettings) else "")
    chunking = Chunking(
        fields=given_fields(args),
        filters=make_filters(args.min_characters, args.max_characters, args.language, args.max_symbol_ratio),
        limit=args.limit,
        min_hash=make_min_hash_settings(args.near_duplicates),
        load_tokens=functools.partial(_tokens_of, str(Path(tokenizer).resolve())) if tokenizer else pieces,
        max_tokens=max_tokens,
        overlap_tokens=args.overlap_tokens,
    )
    of_chunks = settings.model_dump(include={"kinds", "coverage", "max_rounds", "max_questions", "attempts"})
    asked = {"model": model.identity(), "prompts": templates.version, "settings": of_chunks}
    recipe = {
        "job": JOB,
        "input": describe(units),
        "format": args.format,
        "fields": vars(chunking.fields),
        "filters": chunking.filters.settings(),
        "near_duplicates": args.near_duplicates,
        "limit": args.limit,
        "max_tokens": max_tokens,
        "overlap_tokens": args.overlap_tokens,
        "tokenizer": tokenizer_hash(tokenizer) if tokenizer else "estimated",
        **asked,
    }
    one_copy = not settings.at_endpoint and config.device.startswith("cuda")
    return SynthesisJob(
        output=absolute(args.output),
        chunking=chunking,
        model=model,
        templates=templates,
        settings=settings,
        cache=_cache_of(args),
        copies=settings.folder.copies or int(one_copy),
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
    if is_url(args.cache):
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

        model = "" if args.config.synthesis.at_endpoint else args.model
        far = [path for path in args.input if not path.startswith("/")]
        paths = {
            "output": args.output,
            "model": model,
            "tokenizer": args.tokenizer,
            "cache": args.cache,
            "input": far[0] if far else "",
        }
        spark.check_paths(options, paths)
