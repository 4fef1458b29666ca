"""Compress a corpus into MEMORY.

    python -m pipelines.build_memory --input 'corpus/*.jsonl' --output memory --checkpoint checkpoint

A run that was interrupted goes on where it stood; one that has been done says so. Arguments that are not listed here
are Beam's own. With --update, what stands at ° is the older MEMORY's own, and another value is refused.
"""

import argparse
import logging
from collections.abc import Sequence

from clara.config.flags import program
from clara.memory.codec import CODECS
from clara.memory.keys import DEFAULT_KEY_SIZE
from pipelines.corpus.arguments import add_corpus_arguments
from pipelines.job.tracking import add_tracking_arguments


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog=program("pipelines.build_memory"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parse.add_argument
    add(
        "--input",
        action="extend",
        nargs="+",
        required=True,
        metavar="GLOB",
        help="corpus files: paths and globs; may be repeated",
    )
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="the MEMORY; a directory that every worker sees, or a URL (s3://…, gs://…)",
    )
    add(
        "--update",
        default="",
        metavar="DIR",
        help="older MEMORY: --output becomes its new version for the (whole) changed corpus, and only new content is compressed",
    )
    add("--checkpoint", required=True, metavar="DIR", help="CHECKPOINT with the compressor")
    add(
        "--backbone",
        default="",
        metavar="DIR",
        help="folder of the LM (default: the one that the checkpoint holds or names)",
    )
    add_corpus_arguments(parse)
    add(
        "--max-tokens",
        type=int,
        default=0,
        help="tokens of a chunk, title included (default: the checkpoint's max_document_tokens) °",
    )
    add("--overlap-tokens", type=int, help="tokens that a chunk repeats of the one before (default: 0) °")
    add(
        "--num-shards",
        type=int,
        default=0,
        help="files of rows (default: 0, by the number of chunks, of 512 to 1,024 rows in a large corpus, of fewer in a small one) °",
    )
    add("--codec", choices=CODECS, help="how memory is stored (default: float16) °")
    add(
        "--key-size",
        type=int,
        default=0,
        help=f"numbers of a row's index key (default: {DEFAULT_KEY_SIZE}, or M·D where that is less) °",
    )
    add("--key-seed", type=int, help="seed of the key projection (default: 0) °")
    add(
        "--batch-tokens",
        type=int,
        default=4096,
        help="tokens of one compressing batch, padding included (default: %(default)s)",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="type that the LM computes in (default: bfloat16) °")
    add("--device", default="cpu", help="cpu or cuda; asked for and not there is an error (default: %(default)s)")
    add(
        "--gpu-type",
        default="",
        metavar="TYPE",
        help="on Dataflow: GPU of the machines that compress, as nvidia-l4; others get none (default: none)",
    )
    add("--gpu-count", type=int, default=1, help="on Dataflow: GPUs of such a machine (default: %(default)s)")
    add("--limit", type=int, default=0, help="use the first N documents only (default: 0, all)")
    add(
        "--max-failures",
        type=int,
        default=-1,
        help="fail when more records than this can't be used (default: -1, no bound)",
    )
    add("--num-workers", type=int, default=0, help="processes of the local runner (default: 0, all cores)")
    add(
        "--spill",
        default="",
        metavar="DIR",
        help="folder in which the local runner puts chunks aside, about as large as the text, and removes it at the end (default: .spill in --output)",
    )
    add(
        "--runner",
        default="local",
        help="local, or a runner that Beam knows, with its own arguments (default: %(default)s)",
    )
    add(
        "--no-wait",
        action="store_true",
        help="on Dataflow: end once the job is submitted; MEMORY is finished when its manifest.json is there",
    )
    add_tracking_arguments(parse, "MEMORY")
    add("--overwrite", action="store_true", help="replace a finished MEMORY that was made by another recipe")
    add("--dry-run", action="store_true", help="print the resolved settings, the fingerprint and the input, and stop")
    return parse


def main(argv: Sequence[str]) -> int:
    """Build the MEMORY; 0 also where records failed, which is told and noted."""
    args, beam_arguments = parser().parse_known_args(argv)
    # Beam takes seconds to import, which --help need not wait for, and warns of every cloud that is not installed.
    logging.disable(logging.WARNING)
    from pipelines.build_memory import run as memory_run

    logging.disable(logging.NOTSET)
    return memory_run.build(args, beam_arguments)
