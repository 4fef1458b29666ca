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
from pipelines.corpus.arguments import add_corpus_arguments, add_input_argument
from pipelines.job.tracking import add_tracking_arguments


def parser() -> Command:
    """The command line."""
    parse = Command("pipelines.synthesize", __doc__)
    add = parse.add_argument
    add_input_argument(parse)
    add_setting(
        parse, "output", metavar="DIR", required=True, note="every worker must see it; or, made on this machine, a URL"
    )
    add(
        "--model",
        required=True,
        metavar="FOLDER|URL",
        help="folder of a causal LM with a chat template, or an endpoint's base URL",
    )
    _add_what(parse)
    _add_endpoint(parse)
    _add_folder(parse)
    corpus = parse.add_argument_group("the corpus")
    add_corpus_arguments(corpus)
    add = corpus.add_argument
    add(
        "--tokenizer",
        default="",
        metavar="FOLDER",
        help=(
            "folder of the LM whose compressor will read the chunks; they are cut by its tokens (default: --model's "
            "folder; for a URL, tokens are "
            "estimated: a word has one for every four letters begun, a mark one)"
        ),
    )
    add("--max-tokens", type=int, default=256, help="tokens of a chunk, title included (default: %(default)s)")
    add(
        "--overlap-tokens",
        type=int,
        default=0,
        help="tokens that a chunk repeats of the one before (default: %(default)s)",
    )
    group = parse.add_argument_group("the run")
    run = group.add_argument
    run(
        "--num-shards",
        type=int,
        default=0,
        help="pieces that are finished one by one (default: 0, about 64 chunks each)",
    )
    add_setting(group, "records.max_failures")
    run("--retry-failed", action="store_true", help="of finished EXAMPLES, ask again for those whose requests failed")
    add_setting(group, "engine.num_workers")
    add_setting(group, "engine.runner")
    add_tracking_arguments(group)
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


def _add_what(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("what is made").add_argument
    add(
        "--kinds",
        default="simple,complex,paraphrase",
        help="examples of a chunk, comma-separated (default: %(default)s)",
    )
    add(
        "--coverage",
        default="required",
        choices=("required", "counted", "off"),
        help=(
            "whether questions must cover their chunk: required drops those that don't in the end, counted counts "
            "them, off does not check "
            "(default: %(default)s)"
        ),
    )
    add(
        "--max-rounds",
        type=int,
        default=10,
        help="rounds in which missing questions are asked for, at most (default: %(default)s)",
    )
    add(
        "--max-questions",
        type=int,
        default=24,
        help="questions tried for an example over all rounds, at most (default: %(default)s)",
    )
    add(
        "--attempts",
        type=int,
        default=2,
        help="prompts for one reply, until it has the form that was asked for (default: %(default)s)",
    )
    add("--max-reply-tokens", type=int, default=1024, help="of one reply, thoughts included (default: %(default)s)")
    add(
        "--prompts",
        default="",
        metavar="DIR",
        help="your own prompts: files named as in pipelines/synthesis/templates (default: those)",
    )
    add(
        "--extra-body",
        default="{}",
        metavar="JSON",
        help=(
            "further fields of each request, null takes one out; of a folder's model, chat_template_kwargs alone, "
            "where enable_thinking defaults to false (default: %(default)s)"
        ),
    )


def _add_endpoint(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("an endpoint").add_argument
    add("--model-name", help="as the endpoint calls it (default: the only one that it offers)")
    add(
        "--key-variable",
        metavar="NAME",
        help="environment variable that holds the key, where the workers run (default: OPENAI_API_KEY)",
    )
    add("--temperature", type=float, help="of sampling (default: 0)")
    add(
        "--no-system-role",
        action="store_true",
        default=None,
        help="put the system's words in front of the user's, for models without one",
    )
    add("--concurrency", type=int, help="requests at once (default: 16)")
    add("--timeout", type=float, help="seconds for one request (default: 120)")
    add(
        "--tries",
        type=int,
        help="of a request that meets 408, 409, 429, 5xx, a time-out or a broken connection (default: 8)",
    )
    add(
        "--retry-seconds",
        type=float,
        help="before the second try; doubles up to 60, longer where the endpoint says so (default: 1)",
    )
    add("--requests-per-minute", type=float, help="at most, tries included, evenly spaced (default: 0, no limit)")
    add("--tokens-per-minute", type=float, help="prompts and replies, at most (default: 0, no limit)")
    add("--price-prompt", type=float, help="of a million prompt tokens, in your currency (default: 0)")
    add("--price-reply", type=float, help="of a million reply tokens (default: 0)")
    add(
        "--cache",
        metavar="DIR",
        help=(
            "of replies that were paid, on a disk of the machine that asks (default: --output; of a URL a folder of "
            "CLARA_CACHE)"
        ),
    )


def _add_folder(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("a folder's model").add_argument
    add("--device", choices=("cpu", "cuda"), help="fails if unavailable (default: cpu)")
    add("--dtype", choices=("float32", "bfloat16"), help="type that it computes in (default: bfloat16)")
    add("--batch-tokens", type=int, help="tokens of a batch, padding and replies included (default: 16384)")
    add(
        "--copies",
        type=int,
        help="that work at once, one for each process (default: 0: on cuda one, else one for each worker)",
    )


def main(argv: Sequence[str]) -> int:
    """Make the EXAMPLES; 0 also if some were dropped or failed, which is reported."""
    args, beam_arguments = parser().parse_known_args(argv)
    from pipelines.synthesize import run

    return run.synthesize(args, beam_arguments)
