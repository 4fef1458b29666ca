"""Compress a corpus into MEMORY.

    python -m pipelines.build_memory --input 'corpus/*.jsonl' --output memory --checkpoint checkpoint

An interrupted run resumes; a finished one reports that it is up to date. Arguments that are not listed here
are Beam's own. With --update, settings marked ° are those of the older MEMORY, and another value is refused.
"""

import logging
from collections.abc import Sequence

from clara.config.flags import Command, add_setting
from pipelines.corpus.arguments import add_corpus_arguments, add_input_argument
from pipelines.job.tracking import add_tracking_arguments


def parser() -> Command:
    """The command line."""
    parse = Command("pipelines.build_memory", __doc__, uses=["backbone.dtype"])
    add = parse.add_argument
    add_input_argument(parse)
    add_setting(
        parse, "output", metavar="DIR", required=True, note="every worker must see it; or a URL (s3://…, gs://…)"
    )
    add(
        "--update",
        default="",
        metavar="DIR",
        help="older MEMORY: --output becomes its new version for the (whole) changed corpus, "
        "and only new content is compressed",
    )
    add_setting(parse, "checkpoint", metavar="DIR", required=True)
    add_setting(parse, "backbone.path", "--backbone", metavar="DIR")
    add_corpus_arguments(parse)
    add_setting(parse, "corpus_job.max_tokens", note="°")
    add_setting(parse, "corpus_job.overlap_tokens", optional=True, note="°")
    add_setting(parse, "corpus_job.num_shards", note="°")
    add_setting(parse, "corpus_job.codec", optional=True, note="°")
    add_setting(parse, "corpus_job.key_size", note="°")
    add_setting(parse, "corpus_job.key_seed", optional=True, note="°")
    add_setting(parse, "corpus_job.batch_tokens")
    add_setting(parse, "corpus_job.dtype", note="°")
    add_setting(parse, "device")
    add_setting(parse, "engine.gpu_type", metavar="TYPE")
    add_setting(parse, "engine.gpu_count")
    add_setting(parse, "records.max_failures")
    add_setting(parse, "engine.num_workers")
    add_setting(parse, "engine.spill", metavar="DIR")
    add_setting(parse, "engine.runner")
    add(
        "--no-wait",
        action="store_true",
        help="on Dataflow: end once the job is submitted; MEMORY is finished when its manifest.json is there",
    )
    add_tracking_arguments(parse)
    add("--overwrite", action="store_true", help="replace a finished MEMORY that was made by another recipe")
    add("--dry-run", action="store_true", help="print the resolved settings, the fingerprint and the input, and stop")
    return parse


def main(argv: Sequence[str]) -> int:
    """Build the MEMORY. Returns 0 even if records failed; failures are logged and listed in the dead letters."""
    args, beam_arguments = parser().parse_known_args(argv)
    # Beam warns of every cloud whose client is not installed.
    logging.disable(logging.WARNING)
    from pipelines.build_memory import run as memory_run

    logging.disable(logging.NOTSET)
    return memory_run.build(args, beam_arguments)
