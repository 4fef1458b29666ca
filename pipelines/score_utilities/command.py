"""UTILITIES of questions: pools drawn once, and the likelihood of the answer given each candidate alone.

    python -m pipelines.score_utilities --questions DIR --checkpoint DIR --memory DIR [--index DIR] --output DIR
    [--pool-size 20]

While compressor and generator stand still these numbers don't change: `training/joint.py --set utilities=DIR` then
trains the query reasoner for many epochs at the price of its own passes. Score again after a refresh, or when the
generator has trained. A pool holds the known positives (unless --no-positives), the best rows of the index and of BM25
in turn, and rows drawn at random. A run that was interrupted goes on.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsList

from clara.config.flags import program
from clara.data.utilities import FILE, KIND, reader_hash
from clara.errors import InputError
from clara.storage import folders, paths
from clara.storage.artefact import (
    MANIFEST,
    atomic_write,
    manifest_hash,
    read_manifest,
    write_manifest,
)
from pipelines.engines.names import LOCAL
from pipelines.engines.process_pool import WorkerPool, num_cores, retry_on_worker_death
from pipelines.engines.runner import beam_options, execute, make_pipeline
from pipelines.job.artefact_job import ArtefactJob, nothing
from pipelines.job.locks import Lease
from pipelines.job.progress import progress_bar
from pipelines.score_utilities.scoring import ScoreShard, ScoringJob, Worker, questions_of

PLAN = "plan.json"
_ENTRIES = ".entries.json"
_QUESTIONS_A_SHARD = 64


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = argparse.ArgumentParser(
        prog=program("pipelines.score_utilities"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--questions", required=True, metavar="DIR", help="QUESTIONS")
    add(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="CHECKPOINT whose generator reads, and whose query reasoner searches",
    )
    add("--memory", required=True, metavar="DIR", help="MEMORY of that CHECKPOINT's compressor")
    add("--index", default="", metavar="DIR", help="INDEX over that MEMORY (default: exact search over all rows)")
    add("--backbone", default="", help="folder of the LM (default: the one that the checkpoint holds or names)")
    add("--output", required=True, metavar="DIR", help="UTILITIES to write")
    add("--split", default="train", help="of the questions; '' takes all (default: %(default)s)")
    add("--pool-size", type=int, default=20, metavar="N", help="rows of a pool (default: %(default)s)")
    add("--from-index", type=int, default=5, metavar="N", help="of these, best of the index (default: %(default)s)")
    add("--from-bm25", type=int, default=5, metavar="N", help="of these, best of BM25 (default: %(default)s)")
    add("--no-positives", action="store_true", help="don't put the known positives into the pools")
    add(
        "--published-pools",
        action="store_true",
        help="score each question's own candidate_ids, all of them, instead of drawing a pool",
    )
    add("--seed", type=int, default=0, help="of the rows drawn at random (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add(
        "--num-workers",
        type=int,
        default=0,
        help="processes of the local runner; 0: as many as cores (default: %(default)s)",
    )
    add(
        "--runner",
        default=LOCAL,
        help="local, or a runner's name for Beam; further arguments are Beam's (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace UTILITIES of another recipe")
    add("--dry-run", action="store_true", help="print the recipe and stop")
    return found


def job_of(options: argparse.Namespace) -> ScoringJob:
    """The job of the arguments.

    Raises:
        InputError: a number is out of range.
    """
    for name, least in (("pool_size", 2), ("from_index", 0), ("from_bm25", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {least} or more")

    def whole(path: str) -> str:
        return paths.absolute(path) if path else ""

    return ScoringJob(
        questions=whole(options.questions),
        split=options.split,
        checkpoint=whole(options.checkpoint),
        memory=whole(options.memory),
        index=whole(options.index),
        backbone=whole(options.backbone),
        output=whole(options.output),
        device=options.device,
        pool_size=options.pool_size,
        from_index=options.from_index,
        from_bm25=options.from_bm25,
        positives=not options.no_positives,
        published=options.published_pools,
        seed=options.seed,
    )


def prepare(output: str, recipe: dict[str, Any], overwrite: bool) -> None:
    """Keep the shards of an interrupted run of the same recipe; refuse, or remove, those of another.

    Raises:
        InputError: UTILITIES of another recipe, finished or not, are there, and were not to be overwritten.
    """
    plan = json.dumps(recipe, sort_keys=True).encode()
    place = folders.folder(output)
    there = place.files()
    shards = [name for name in there if name.startswith("shard-") and name.endswith(f"/{FILE}")]
    same = PLAN in there and place.read(PLAN) == plan
    if not same and (shards or MANIFEST in there):
        if not overwrite:
            raise InputError(
                f"--output {output}: holds utilities of another recipe (other questions, checkpoint, MEMORY or "
                "settings); choose another directory, or replace them with --overwrite"
            )
        place.remove([MANIFEST, *shards])
    place.write(PLAN, plan)


def score_on_beam(job: ScoringJob, num_shards: int, pipeline: beam.Pipeline) -> list[dict[str, Any]]:
    """What `score_shard` returns for all shards, scored by the runner of a pipeline.

    Raises:
        InputError: a worker's.
    """
    found = (
        pipeline
        | "shards" >> beam.Create(range(num_shards))
        | "spread" >> beam.Reshuffle()
        | "score" >> beam.ParDo(ScoreShard(job, num_shards))
    )
    (
        pipeline
        | "once" >> beam.Create([None])
        | "collect" >> beam.Map(_collect, AsList(found), paths.join(job.output, _ENTRIES))
    )
    execute(pipeline)
    return list(json.loads(folders.folder(job.output).read(_ENTRIES) or b"[]"))


def score_here(job: ScoringJob, num_shards: int, num_workers: int) -> list[dict[str, Any]]:
    """What `score_shard` returns for all shards, scored on this machine's cores.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    with WorkerPool(num_workers, Worker, job) as pool:
        return list(pool.map(functools.partial(Worker.score, num_shards=num_shards), range(num_shards)))


def run(
    job: ScoringJob, score: Callable[[int], list[dict[str, Any]]], recipe: dict[str, Any], lease: Lease | None = None
) -> int:
    """Score all shards and write the manifest. Returns the number of questions.

    Args:
        job: the job.
        score: `score_on_beam` or `score_here` for a number of shards.
        recipe: what determines the numbers.
        lease: on the place of a URL.

    Raises:
        InputError: a worker's.
    """
    questions = questions_of(job)
    num_shards = -(-len(questions) // _QUESTIONS_A_SHARD)
    with progress_bar(job.output, time.time(), quiet=False, what="questions", doing="score"):
        entries = score(num_shards)
    errors = sorted(e["error"] for e in entries if "error" in e)
    if errors:
        raise InputError(errors[0])
    if lease:
        lease.check()
    write_manifest(
        job.output,
        kind=KIND,
        files=entries,
        recipe=recipe,
        counts={"questions": len(questions), **({} if job.published else {"pool size": job.pool_size})},
        memory=manifest_hash(job.memory),
        reader=reader_hash(job.checkpoint),
    )
    return len(questions)


def _collect(_: None, entries: list[dict[str, Any]], path: str) -> None:
    atomic_write(path, json.dumps(entries))


def main(argv: list[str]) -> int:
    """The command line."""
    options, rest = parser().parse_known_args(argv)
    job = job_of(options)
    beam_arguments = beam_options(rest, options.runner, options.num_workers)
    recipe = job.recipe()
    read_manifest(job.memory, "MEMORY")

    def score(num_shards: int) -> list[dict[str, Any]]:
        if options.runner == LOCAL:
            return score_here(job, num_shards, options.num_workers or num_cores())
        return score_on_beam(job, num_shards, make_pipeline(beam_arguments, options.runner))

    pools = "published pools" if job.published else f"pools of {job.pool_size}"
    return ArtefactJob(
        output=options.output,
        kind=KIND,
        plan=lambda: recipe | {"questions": len(questions_of(job))},
        recipe=lambda: recipe,
        prepare=nothing,
        clear=lambda: prepare(job.output, recipe, options.overwrite),
        write=lambda _, lease: retry_on_worker_death(lambda: run(job, score, recipe, lease), options.output),
        report=lambda count: print(f"{options.output}: UTILITIES of {count} questions, {pools}"),
    ).run(dry_run=options.dry_run)
