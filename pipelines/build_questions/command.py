"""QUESTIONS from published files, from one's own, or from a corpus without any.

python -m pipelines.build_questions --input hotpot_dev.json --format hotpotqa --output DIR --corpus-output corpus.jsonl
python -m pipelines.build_questions --input questions.jsonl --format jsonl --output DIR
python -m pipelines.build_questions --input corpus.jsonl --format cloze --output DIR --pool-size 20

Without --format it is detected from the fields of the first rows. Formats with documents (clara, hotpotqa, 2wiki,
musique, squad, flashrag, dpr, fid, mrqa, bioasq, nq) name them by the hash of their content, or by the ids that those
of dpr, fid and mrqa have; --corpus-output writes them for build_memory. Pools keep the published candidates in a seeded
order, as published ones may have the right ones in front. beir and msmarco (colbert) are queries whose right documents
--qrels names:
python -m pipelines.build_questions --input queries.jsonl --qrels qrels/test.tsv --format beir --output DIR

`cloze` masks in an article's sentence the mention of another article (pipelines/corpus/bridges.py); `natural` asks Who,
What, Which, Where and When by rule (pipelines/corpus/natural.py); `cloze+natural` does both. All split by the article
that is asked for.
"""

import functools
import json
from typing import Any

from clara.config.flags import Command, add_setting
from clara.config.jobs import Cloze
from clara.data.input_files import expand, input_hashes
from clara.data.questions import write_questions
from clara.errors import InputError
from clara.storage.folders import exists
from pipelines.build_questions.convert import bm25_recall, corpus_rows
from pipelines.build_questions.detect import detect
from pipelines.build_questions.formats import ALIASES, FORMATS, FROM_CORPUS
from pipelines.build_questions.question_format import Built
from pipelines.corpus.arguments import add_field_arguments, given_fields
from pipelines.corpus.whole import corpus_files, write_jsonl
from pipelines.job.artefact_job import ArtefactJob
from pipelines.job.locks import Lease


def parser() -> Command:
    """The command line's arguments."""
    found = Command("pipelines.build_questions", __doc__)
    found.add_argument("--input", required=True, nargs="+", metavar="FILE", help="files or quoted globs")
    found.add_argument(
        "--format",
        choices=(*FORMATS, *ALIASES),
        help="of the input; cloze and natural read a corpus: records of id, title, text; without it: by the fields of "
        "the rows",
    )
    add_setting(found, "output", metavar="DIR", required=True)
    add_setting(found, "seed")
    found.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    published = found.add_argument_group("all formats but cloze and natural")
    published.add_argument(
        "--corpus-output", metavar="FILE", help="JSONL to write with the questions' documents (formats that have some)"
    )
    add_setting(published, "questions_job.split")
    add_setting(published, "questions_job.skip_bad")
    add_setting(published, "questions_job.document_ids")
    published.add_argument(
        "--qrels",
        nargs="+",
        metavar="FILE",
        help="judgements of beir and msmarco: query-id, corpus-id, score (TSV, JSONL, Parquet), or TREC's four columns",
    )
    cloze = found.add_argument_group("cloze and natural")
    add_field_arguments(cloze)
    for name in Cloze.model_fields:
        add_setting(cloze, f"cloze.{name}")
    cloze.add_argument("--bm25", action="store_true", help="also print BM25's recall over the corpus")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    files = expand(options.input)
    options.format = ALIASES.get(options.format, options.format) or detect(files, judged=bool(options.qrels))
    form = FORMATS[options.format]
    if options.format in FROM_CORPUS:
        files = corpus_files(options.input, given_fields(options))
    settings = form.settings(options)
    if options.corpus_output and not form.brings_documents:
        raise InputError(
            f"--corpus-output {options.corpus_output}: format {options.format} brings no documents; leave it out"
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
        if options.corpus_output and not built.documents:
            raise InputError(
                f"--corpus-output {options.corpus_output}: no row of {', '.join(files)} brings documents; leave it out"
            )
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
