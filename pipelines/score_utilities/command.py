"""UTILITIES of questions: pools drawn once, and the likelihood of the answer given each candidate alone.

    python -m pipelines.score_utilities --questions DIR --checkpoint DIR --memory DIR [--index DIR] --output DIR
    [--pool-size 20]

While compressor and generator do not train these numbers don't change: `training/joint.py --set utilities=DIR` then
trains the query reasoner for many epochs at the price of its passes alone. Score again after a refresh, or when the
generator has trained. A pool holds the known positives (unless --no-positives), the best rows of the index, of BM25
and by dense vectors in turn, and rows drawn at random. An interrupted run resumes,
also with a MEMORY and an INDEX that were built again from the same corpus and CHECKPOINT.
"""

import argparse
import functools
import json
from collections.abc import Callable
from typing import Any

from clara.config.dense_flags import add_dense_settings
from clara.config.flags import Command, add_setting
from clara.config.model import SOURCE_SETTINGS
from clara.data.utilities import FILE, KIND, reader_hash
from clara.errors import InputError
from clara.memory.identity import memory_identity
from clara.storage import folders, paths
from clara.storage.manifest import MANIFEST, read_manifest, write_manifest
from pipelines.engines.pipeline import pipeline_of
from pipelines.engines.process_pool import WorkerPool, num_cores, retry_on_worker_death
from pipelines.job.artefact_job import ArtefactJob, nothing
from pipelines.job.locks import Lease
from pipelines.job.progress import progress_bar
from pipelines.score_utilities.job import ScoringJob, check_reuse, questions_of

PLAN = "plan.json"
_QUESTIONS_A_SHARD = 64


def parser() -> Command:
    """The command line's arguments."""
    found = Command("pipelines.score_utilities", __doc__)
    add_setting(found, "questions", metavar="DIR", required=True)
    add_setting(
        found, "checkpoint", metavar="DIR", required=True, note="its generator reads, and its query reasoner searches"
    )
    add_setting(found, "memory", metavar="DIR", required=True)
    add_setting(found, "index", metavar="DIR")
    add_setting(found, "backbone.path", "--backbone", metavar="DIR")
    add_setting(found, "output", metavar="DIR", required=True)
    for name in ("split", "pool_size", *SOURCE_SETTINGS.values()):
        add_setting(found, f"utility_job.{name}")
    add_dense_settings(found)
    add_setting(found, "retrieval.exact_rows")
    add_setting(found, "utility_job.positives", "--no-positives")
    for name in ("published_pools", "fold", "limit", "shuffle_answers"):
        add_setting(found, f"utility_job.{name}")
    add_setting(found, "utility_job.reuse", metavar="DIR")
    add_setting(found, "seed")
    add_setting(found, "device")
    add_setting(found, "engine.num_workers")
    add_setting(found, "engine.runner", note="arguments that are not listed here are Beam's own")
    found.add_argument("--overwrite", action="store_true", help="replace UTILITIES of another recipe")
    found.add_argument("--dry-run", action="store_true", help="print the recipe and stop")
    return found


def job_of(options: argparse.Namespace) -> ScoringJob:
    """The job of the arguments."""

    def whole(path: str) -> str:
        return paths.absolute(path) if path else ""

    dense = options.config.retrieval.only_dense()
    chosen = {"dense_model": whole(dense.dense_model), "exact_rows": options.exact_rows}
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
        sources={name: getattr(options, setting) for name, setting in SOURCE_SETTINGS.items()},
        retrieval=dense.model_copy(update=chosen),
        positives=options.positives,
        published=options.published_pools,
        fold=options.fold,
        limit=options.limit,
        reuse=whole(options.reuse),
        shuffle_answers=options.shuffle_answers,
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


def score_here(job: ScoringJob, num_shards: int, num_workers: int) -> list[dict[str, Any]]:
    """What `score_shard` returns for all shards, scored on this machine's cores.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    from pipelines.score_utilities.scoring import Worker  # imports torch, which an error need not wait for

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
    with progress_bar(job.output, quiet=False, what="questions", doing="score"):
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
        memory=memory_identity(job.memory),
        reader=reader_hash(job.checkpoint),
    )
    return len(questions)


def main(argv: list[str]) -> int:
    """The command line."""
    options, beam_arguments = parser().parse_known_args(argv)
    job = job_of(options)
    pipeline = pipeline_of(options.runner, options.num_workers, beam_arguments)
    recipe = job.recipe()
    read_manifest(job.memory, "MEMORY")
    check_reuse(job, recipe)

    def score(num_shards: int) -> list[dict[str, Any]]:
        if pipeline is None:
            return score_here(job, num_shards, options.num_workers or num_cores())
        from pipelines.score_utilities.on_beam import score_on_beam

        return score_on_beam(job, num_shards, pipeline())

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
