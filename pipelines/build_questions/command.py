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
import json
from dataclasses import asdict
from typing import Any

from clara.data.corpus import FIELDS, expand, input_hashes
from clara.data.questions import write_questions
from clara.errors import InputError
from clara.storage import artefact
from clara.storage.folders import exists
from pipelines.build_questions.convert import bm25_recall, convert_files, corpus_rows
from pipelines.build_questions.formats import FORMATS, SPLITS
from pipelines.corpus.arguments import add_field_arguments, given_fields, refuse_fields
from pipelines.corpus.bridges import ClozeSettings, cloze_questions
from pipelines.corpus.whole import read_corpus, write_jsonl
from pipelines.job.locks import locked


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = argparse.ArgumentParser(
        prog="python -m pipelines.build_questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--input", required=True, nargs="+", metavar="FILE", help="files or quoted globs")
    found.add_argument(
        "--format",
        required=True,
        choices=("cloze", *FORMATS),
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
        help="give training questions a pool of --pool-size too, of articles that are not held out (for instruct.negatives=pool)",
    )
    cloze.add_argument("--bm25", action="store_true", help="also print BM25's recall over the corpus")
    return found


def resolve_cloze(options: argparse.Namespace) -> ClozeSettings:
    """Settings of the command line.

    Raises:
        InputError: a value is out of its range.
    """
    for name, valid, expected in (
        ("max_per_target", options.max_per_target >= 1, "at least 1"),
        ("min_words", 1 <= options.min_words <= options.max_words, f"1 to --max-words ({options.max_words})"),
        ("held_out_share", 0 <= options.held_out_share < 1, "0 to under 1"),
        ("pool_size", options.pool_size == 0 or options.pool_size >= 2, "0, or at least 2"),
    ):
        if not valid:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}; expected {expected}")
    if options.train_pools and not options.pool_size:
        raise InputError("--train-pools without --pool-size; say how many documents a pool holds, as in --pool-size 20")
    return ClozeSettings(**{name: getattr(options, name) for name in asdict(ClozeSettings())})


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    files, fields = expand(options.input), given_fields(options)
    is_cloze = options.format == "cloze"
    if not is_cloze:
        refuse_fields(options, f"--format {options.format} has names of its own")
    if options.corpus_output and (is_cloze or not FORMATS[options.format].has_documents):
        raise InputError(
            f"--corpus-output {options.corpus_output}: format {options.format} brings no documents of its own; leave it out"
        )
    settings: dict[str, Any] = (
        asdict(resolve_cloze(options)) if is_cloze else {n: getattr(options, n) for n in ("seed", "split", "skip_bad")}
    )
    named = {"fields": asdict(fields)} if fields != FIELDS else {}
    if options.dry_run:
        print(
            json.dumps(
                {"format": options.format, "inputs": files, "settings": settings | named, "output": options.output},
                indent=1,
            )
        )
        return 0
    # Pools of training questions and other fields came later: without them, older QUESTIONS are still what they were.
    shaping = {name: value for name, value in settings.items() if name != "train_pools" or value}
    recipe = {
        "program": "build_questions",
        "format": options.format,
        "settings": shaping | named,
        "inputs": input_hashes(files),
    }
    written = not options.corpus_output or exists(options.corpus_output)
    if artefact.up_to_date(options.output, "QUESTIONS", recipe) and written and not options.bm25:
        print(f"{options.output}: up to date")
        return 0
    if is_cloze:
        corpus = read_corpus(files, fields)
        questions, counts = cloze_questions(corpus, ClozeSettings(**settings))
        if not questions:
            raise InputError(
                f"{', '.join(files)}: no article mentions another ({counts}); give a larger corpus with titles"
            )
        if options.bm25:
            print(f"BM25 over {len(corpus)} documents: {json.dumps(bm25_recall(questions, corpus))}")
    else:
        questions, documents, counts = convert_files(files, FORMATS[options.format], **settings)
        if options.corpus_output:
            print(
                f"{options.corpus_output}: {write_jsonl(options.corpus_output, corpus_rows(documents.values()))} documents"
            )
    with locked(options.output):
        manifest = write_questions(options.output, questions, recipe=recipe, counts=counts)
    print(f"{options.output}: QUESTIONS {json.dumps(manifest['counts'])}")
    return 0
