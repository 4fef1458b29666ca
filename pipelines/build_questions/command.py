"""QUESTIONS from published files, from one's own, or from a corpus without any.

python -m pipelines.build_questions --input hotpot_dev.json --format hotpotqa --output DIR --corpus-output corpus.jsonl
python -m pipelines.build_questions --input questions.jsonl --format jsonl --output DIR
python -m pipelines.build_questions --input corpus.jsonl --format cloze --output DIR --pool-size 20

Formats with documents (hotpotqa, 2wiki, musique, squad) name them by the hash of their content; --corpus-output writes
them for build_memory. Pools keep the published candidates in a seeded order, as published ones may have the right ones
in front. `cloze` masks in an article's sentence the mention of another article, and splits by the article that is asked
for: see pipelines/corpus/bridges.py.
"""

import argparse
import functools
import json
from typing import Any

from clara.config.flags import program
from clara.data.corpus import expand, input_hashes
from clara.data.questions import write_questions
from clara.errors import InputError
from clara.storage.folders import exists
from pipelines.build_questions.convert import bm25_recall, corpus_rows
from pipelines.build_questions.formats import FORMATS
from pipelines.build_questions.published import SPLITS
from pipelines.build_questions.question_format import Built
from pipelines.corpus.arguments import add_field_arguments
from pipelines.corpus.bridges import ClozeSettings
from pipelines.corpus.whole import write_jsonl
from pipelines.job.artefact_job import ArtefactJob
from pipelines.job.locks import Lease


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = argparse.ArgumentParser(
        prog=program("pipelines.build_questions"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--input", required=True, nargs="+", metavar="FILE", help="files or quoted globs")
    found.add_argument(
        "--format",
        required=True,
        choices=tuple(FORMATS),
        help="of the input; cloze reads a corpus: records of id, title, text",
    )
    found.add_argument("--output", required=True, metavar="DIR", help="QUESTIONS to write")
    found.add_argument("--seed", type=int, default=0, help="orders pools, draws what is drawn (default: 0)")
    found.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    published = found.add_argument_group("all formats but cloze")
    published.add_argument(
        "--corpus-output", metavar="FILE", help="JSONL to write with the questions' documents (formats that have some)"
    )
    published.add_argument(
        "--split",
        default="",
        choices=SPLITS,
        help="split of all questions (default: of jsonl each row's own field split, else none)",
    )
    published.add_argument(
        "--skip-bad", action="store_true", help="count rows without a question or answer and go on (default: stop)"
    )
    cloze, standard = found.add_argument_group("cloze"), ClozeSettings()
    add_field_arguments(cloze)
    for name, kind, text in (
        ("max_per_target", int, "most questions that ask for one article, in each split"),
        ("min_words", int, "shortest sentence, in words"),
        ("max_words", int, "longest sentence, in words"),
        ("held_out_share", float, "share of articles that training never asks for"),
        ("salt", str, "what their ids are hashed with"),
        ("pool_size", int, "documents in the fixed pool of a seen or unseen question; 0: no pools"),
    ):
        default = getattr(standard, name)
        cloze.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{text} (default: {default})"
        )
    cloze.add_argument(
        "--train-pools",
        action="store_true",
        help=(
            "give training questions a pool of --pool-size too, of articles that are not held out (for "
            "instruct.negatives=pool)"
        ),
    )
    cloze.add_argument("--bm25", action="store_true", help="also print BM25's recall over the corpus")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    files, form = expand(options.input), FORMATS[options.format]
    settings = form.settings(options)
    if options.corpus_output and not form.brings_documents:
        raise InputError(
            f"--corpus-output {options.corpus_output}: format {options.format} brings no documents of its own; leave "
            "it out"
        )

    @functools.cache
    def recipe() -> dict[str, Any]:
        return {
            "program": "build_questions",
            "format": options.format,
            "settings": settings,
            "inputs": input_hashes(files),
        }

    def prepare() -> Built:
        built = form.build(files, settings)
        if options.bm25 and built.documents:
            recall = bm25_recall(built.questions, built.documents)
            print(f"BM25 over {len(built.documents)} documents: {json.dumps(recall)}")
        if options.corpus_output:
            print(
                f"{options.corpus_output}: {write_jsonl(options.corpus_output, corpus_rows(built.documents))} documents"
            )
        return built

    def write(built: Built, lease: Lease | None) -> dict[str, Any]:
        return write_questions(options.output, built.questions, recipe=recipe(), counts=built.counts)

    return ArtefactJob(
        output=options.output,
        kind="QUESTIONS",
        plan=lambda: {"format": options.format, "inputs": files, "settings": settings, "output": options.output},
        recipe=recipe,
        prepare=prepare,
        write=write,
        report=lambda manifest: print(f"{options.output}: QUESTIONS {json.dumps(manifest['counts'])}"),
        must_run=lambda: options.bm25 or bool(options.corpus_output and not exists(options.corpus_output)),
    ).run(dry_run=options.dry_run)
