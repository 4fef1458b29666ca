"""EXAMPLES from a corpus with a language model: questions with verified answers, and verified paraphrases.

At an endpoint that speaks OpenAI's protocol (vLLM, say):
    python -m pipelines.synthesize --input 'corpus/*.jsonl' --output DIR --model http://localhost:8000/v1
With a model of one's own, run in the job:
    python -m pipelines.synthesize --input 'corpus/*.jsonl' --output DIR --model FOLDER

Each chunk gives up to three examples: simple questions, complex ones, and the text in other words. Each question is
answered from the chunk alone, each answer verified, and asked for more until the questions cover the chunk; what fails
is dropped, and listed in dead_letters.jsonl with its reason. Begin with --dry-run: it prints the highest possible cost.
An interrupted run resumes; no reply that has arrived is paid twice. A key comes from an environment variable (see
--key-variable) and is written down nowhere. Arguments that are not listed here are Beam's own.
"""

import argparse
from collections.abc import Sequence

from clara.config.flags import Command, add_setting
from clara.config.synthesis import Endpoint
from pipelines.corpus.arguments import add_corpus_arguments, add_input_argument
from pipelines.job.tracking import add_tracking_arguments


def parser() -> Command:
    """The command line."""
    parse = Command("pipelines.synthesize", __doc__, uses=["model.max_document_tokens"])
    add_input_argument(parse)
    add_setting(
        parse, "output", metavar="DIR", required=True, note="every worker must see it; or, made on this machine, a URL"
    )
    add_setting(parse, "synthesis.model", required=True, metavar="FOLDER|URL")
    _add_what(parse.add_argument_group("what is made"))
    _add_endpoint(parse.add_argument_group("an endpoint"))
    folder = parse.add_argument_group("a folder's model")
    for key in ("device", "synthesis.folder.dtype", "synthesis.folder.batch_tokens", "synthesis.folder.copies"):
        add_setting(folder, key)
    corpus = parse.add_argument_group("the corpus")
    add_corpus_arguments(corpus)
    add_setting(corpus, "synthesis.tokenizer", metavar="FOLDER")
    add_setting(corpus, "corpus_job.max_tokens")
    add_setting(corpus, "corpus_job.overlap_tokens")
    group = parse.add_argument_group("the run")
    for key in ("synthesis.num_shards", "records.max_failures", "engine.num_workers", "engine.runner"):
        add_setting(group, key)
    add_tracking_arguments(group)
    run = group.add_argument
    run("--retry-failed", action="store_true", help="of finished EXAMPLES, ask again for those whose requests failed")
    run(
        "--overwrite",
        action="store_true",
        help="replace finished EXAMPLES that were made by another recipe; replies that were paid stay",
    )
    run(
        "--dry-run",
        action="store_true",
        help="read the corpus, print chunks, requests, tokens and costs, and stop; asks nothing",
    )
    return parse


def _add_what(group: argparse._ActionsContainer) -> None:
    for name in ("kinds", "coverage", "max_rounds", "max_questions", "attempts", "max_reply_tokens"):
        add_setting(group, f"synthesis.{name}")
    add_setting(group, "synthesis.prompts", metavar="DIR")
    add_setting(group, "synthesis.extra_body", metavar="JSON")


def _add_endpoint(group: argparse._ActionsContainer) -> None:
    flags = {"name": "--model-name", "system_role": "--no-system-role", "timeout_seconds": "--timeout"}
    metavars = {"key_variable": "NAME", "cache": "DIR"}
    for name in Endpoint.model_fields:
        add_setting(group, f"synthesis.endpoint.{name}", flags.get(name, ""), metavar=metavars.get(name))


def main(argv: Sequence[str]) -> int:
    """Make the EXAMPLES; 0 also if some were dropped or failed, which is reported."""
    args, beam_arguments = parser().parse_known_args(argv)
    from pipelines.synthesize import run

    return run.synthesize(args, beam_arguments)
