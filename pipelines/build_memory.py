"""Compress a corpus into MEMORY.

    python -m pipelines.build_memory --input 'corpus/*.jsonl' --output memory --checkpoint checkpoint

A run that was interrupted goes on where it stood; one that has been done says so. Arguments that are not listed here are Beam's own.
"""

import argparse
import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from clara.artefact import MANIFEST, read_manifest, up_to_date
from clara.codec import CODECS
from clara.encode import key_projection
from clara.errors import InputError, command_line
from clara.fingerprint import Fingerprint, of_checkpoint
from clara.memory import KIND
from pipelines.chunking import check_limits
from pipelines.memory_job import DEAD_LETTERS, OUTCOME, Job, add_memory_job, read_outcome
from pipelines.runner import LOCAL, beam_options, locked, make_pipeline, num_cores, shard_progress
from pipelines.sources import FORMATS, Fields, Unit, describe, find_units

_LOG = logging.getLogger(__name__)
DEFAULT_KEY_SIZE = 256


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m pipelines.build_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parse.add_argument
    add("--input", action="append", required=True, metavar="GLOB", help="corpus files; quote the glob, repeat for more")
    add("--output", required=True, metavar="DIR", help="the MEMORY; a directory that every worker sees")
    add("--checkpoint", required=True, metavar="DIR", help="CHECKPOINT with the compressor")
    add("--backbone", default="", metavar="DIR", help="folder of the LM (default: the one that the checkpoint holds or names)")
    add("--format", default="auto", choices=("auto", *FORMATS), help="of the input (default: auto, by the file name)")
    add("--id-field", default="id", help="field with the document's id; without it, the hash of its content (default: %(default)s)")
    add("--title-field", default="title", help="field with the title, which stands in front of each chunk (default: %(default)s)")
    add("--text-field", default="text", help="field with the text (default: %(default)s)")
    add("--max-tokens", type=int, default=0, help="tokens of a chunk, title included (default: the checkpoint's max_document_tokens)")
    add("--overlap-tokens", type=int, default=0, help="tokens that a chunk repeats of the one before (default: %(default)s)")
    add("--num-shards", type=int, default=0, help="files of rows (default: 0, by the number of chunks, about 256 rows each)")
    add("--codec", default="float16", choices=CODECS, help="how memory is stored (default: %(default)s)")
    add("--key-size", type=int, default=0, help=f"numbers of a row's index key (default: {DEFAULT_KEY_SIZE}, or M·D where that is less)")
    add("--key-seed", type=int, default=0, help="seed of the key projection (default: %(default)s)")
    add("--batch-tokens", type=int, default=4096, help="tokens of one compressing batch, padding included (default: %(default)s)")
    add("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="type that the LM computes in (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda; asked for and not there is an error (default: %(default)s)")
    add("--limit", type=int, default=0, help="use the first N documents only (default: 0, all)")
    add("--max-failures", type=int, default=-1, help="fail when more records than this can't be used (default: -1, no bound)")
    add("--num-workers", type=int, default=0, help="processes of the local runner (default: 0, all cores)")
    add("--runner", default=LOCAL, help="local, or a runner that Beam knows, with its own arguments (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace a finished MEMORY that was made by another recipe")
    add("--dry-run", action="store_true", help="print the resolved settings, the fingerprint and the input, and stop")
    return parse


def resolve_fingerprint(args: argparse.Namespace) -> Fingerprint:
    """The fingerprint of what these arguments make; a derived default has its home here.

    Raises:
        InputError: of the checkpoint, the backbone, the chunk limits or the key size.
    """
    settings = read_manifest(args.checkpoint, "CHECKPOINT")["model"]
    max_tokens = args.max_tokens or settings["max_document_tokens"]
    check_limits(max_tokens, args.overlap_tokens)

    def fingerprint(key_size: int) -> Fingerprint:
        return of_checkpoint(
            args.checkpoint,
            backbone=args.backbone,
            dtype=args.dtype,
            max_tokens=max_tokens,
            overlap_tokens=args.overlap_tokens,
            key_size=key_size,
            key_seed=args.key_seed,
        )

    found = fingerprint(args.key_size or DEFAULT_KEY_SIZE)
    num_numbers = found.num_memory_tokens * found.hidden_size
    if not args.key_size and num_numbers < DEFAULT_KEY_SIZE:
        found = fingerprint(num_numbers)
    key_projection(found.num_memory_tokens, found.hidden_size, found.key_size, found.key_seed)
    return found


def make_job(args: argparse.Namespace, units: Sequence[Unit]) -> Job:
    """The job of these arguments.

    Raises:
        InputError: a value out of range, or as of `resolve_fingerprint`.
    """
    for name, value, least in (("num-shards", args.num_shards, 0), ("limit", args.limit, 0), ("batch-tokens", args.batch_tokens, 1), ("num-workers", args.num_workers, 0)):  # fmt: skip
        if value < least:
            raise InputError(f"--{name} {value}: expected {least} or more")
    if "://" in args.output:
        raise InputError(f"--output {args.output}: a URL; MEMORY is mapped, so give a directory on a (mounted) file system")
    fields = Fields(args.id_field, args.title_field, args.text_field)
    fingerprint = resolve_fingerprint(args)
    recipe = {
        "job": "build_memory",
        "input": describe(units),
        "format": args.format,
        "fields": vars(fields),
        "fingerprint": fingerprint.as_dict(),
        "num_shards": args.num_shards,
        "codec": args.codec,
        "batch_tokens": args.batch_tokens,
        "limit": args.limit,
        "device": args.device,
    }
    return Job(
        output=str(Path(args.output).resolve()),
        checkpoint=str(Path(args.checkpoint).resolve()),
        backbone=str(Path(args.backbone).resolve()) if args.backbone else "",
        device=args.device,
        fingerprint=fingerprint,
        fields=fields,
        num_shards=args.num_shards,
        codec=args.codec,
        batch_tokens=args.batch_tokens,
        limit=args.limit,
        max_failures=args.max_failures,
        recipe=recipe,
    )


def clear_the_way(output: Path, overwrite: bool) -> None:
    """Make sure that no manifest stands over files that are about to change.

    Raises:
        InputError: a finished MEMORY of another recipe is there, and was not to be overwritten.
    """
    (output / OUTCOME).unlink(missing_ok=True)
    if not (output / MANIFEST).exists():
        return
    if not overwrite:
        raise InputError(
            f"--output {output}: holds a finished artefact of another recipe (other input, checkpoint or settings); "
            "choose another directory, or replace it with --overwrite"
        )
    (output / MANIFEST).unlink()


def remove_unlisted_shards(output: Path) -> None:
    """Remove shards of earlier attempts that the manifest does not list."""
    listed = {entry["path"].partition("/")[0] for entry in read_manifest(output, KIND)["files"]}
    for folder in output.glob("shard-*"):
        if folder.is_dir() and folder.name not in listed:
            shutil.rmtree(folder)


def run(job: Job, units: Sequence[Unit], pipeline: beam.Pipeline, *, quiet: bool = False) -> dict[str, Any]:
    """Run the job on a pipeline that is given. Returns the counts.

    Raises:
        InputError: the job says what is wrong with its input.
    """
    output = Path(job.output)
    started = time.time()
    add_memory_job(pipeline, units, job)
    with shard_progress(output, started, quiet=quiet):
        pipeline.run().wait_until_finish()
    counts = read_outcome(output)
    remove_unlisted_shards(output)
    return {**counts, "seconds": round(time.time() - started, 1)}


def report(counts: dict[str, Any], output: str) -> None:
    """Tell what was done, and loudly what was not."""
    for name, value in counts.items():
        print(f"{name:>28}  {value}")
    if counts["dead letters"]:
        _LOG.warning(
            "%d records could not be used: %s; see %s",
            counts["dead letters"],
            counts["dead letters by reason"],
            Path(output) / DEAD_LETTERS,
        )


def main(argv: Sequence[str]) -> int:
    """Build the MEMORY; 0 also where records failed, which is told and noted."""
    args, rest = parser().parse_known_args(argv)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    options = beam_options(rest, args.runner, args.num_workers)
    units = find_units(args.input, args.format)
    job = make_job(args, units)
    if args.dry_run:
        print(
            json.dumps(
                {**job.recipe, "fingerprint_hash": job.fingerprint.hash, "units": len(units), "workers": args.num_workers or num_cores()},
                indent=1,
            )
        )
        return 0
    output = Path(job.output)
    if up_to_date(output, KIND, job.recipe):
        print(f"{args.output}: up to date")
        return 0
    with locked(output):
        clear_the_way(output, args.overwrite)
        counts = run(job, units, make_pipeline(options, args.runner))
    report(counts, args.output)
    return 0


if __name__ == "__main__":
    command_line(main)
