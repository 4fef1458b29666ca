"""UTILITIES of questions: pools drawn once, and how likely each candidate alone makes the answer (a Beam job over all cores, or a runner's).

    python -m pipelines.score_utilities --questions DIR --checkpoint DIR --memory DIR [--index DIR] --output DIR
    [--pool-size 20]

While compressor and generator stand still these numbers don't change: `training/joint.py --set utilities=DIR` then
trains the query reasoner for many epochs at the price of its own passes. Score again after a refresh, or when the
generator has trained. A pool holds the known positives (unless --no-positives), the best rows of the index and of BM25
in turn, and rows drawn at random. A run that was interrupted goes on.
"""

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import torch
from apache_beam.pvalue import AsList
from apache_beam.utils.shared import Shared

from clara.config.flags import program
from clara.data.questions import Question, read_questions
from clara.data.utilities import FILE, KIND, Scored, reader_hash, write_shard
from clara.errors import InputError, command_line
from clara.memory.shards import shard_name
from clara.processes import torch_threads
from clara.retrieval.pools import QuestionRows, Source, fill_at_random, own_candidates, text_sources
from clara.retrieval.ranker import Queries
from clara.retrieval.retriever import Retriever
from clara.storage import folders, paths
from clara.storage.artefact import (
    MANIFEST,
    atomic_write,
    file_entry,
    manifest_hash,
    read_manifest,
    write_manifest,
)
from pipelines.engines.names import LOCAL
from pipelines.engines.process_pool import WorkerPool, num_cores, retry_on_worker_death
from pipelines.engines.runner import beam_options, execute, make_pipeline
from pipelines.job.artefact_job import ArtefactJob, nothing
from pipelines.job.locks import Lease
from pipelines.job.progress import ShardProgress, progress_bar

PLAN = "plan.json"
_ENTRIES = ".entries.json"
_QUESTIONS_A_SHARD = 64


@dataclass(frozen=True)
class Job:
    """What the workers need to know. See the command's arguments."""

    questions: str
    split: str
    checkpoint: str
    memory: str
    index: str
    backbone: str
    output: str
    device: str
    pool_size: int
    from_index: int
    from_bm25: int
    positives: bool
    published: bool
    seed: int

    def recipe(self) -> dict[str, Any]:
        """What determines the numbers."""
        inputs = {
            name: manifest_hash(path)
            for name in ("questions", "checkpoint", "memory", "index")
            if (path := getattr(self, name))
        }
        settings = ("split", "pool_size", "from_index", "from_bm25", "positives", "published", "seed", "device")
        return {"job": "score_utilities", "inputs": inputs, **{name: getattr(self, name) for name in settings}}


class Scorer:
    """Draws a question's pool and reads each of its rows: a model, a MEMORY and its texts, once a process."""

    def __init__(self, job: Job) -> None:
        """Open everything.

        Raises:
            InputError: see `Retriever.open`.
        """
        self._job = job
        self._retriever = Retriever.open(
            job.checkpoint, job.memory, job.index or None, backbone=job.backbone, device=job.device
        )
        self._sources = [] if job.published else text_sources(job, self._retriever.store)
        if job.from_index and not job.published:
            self._sources.insert(0, Source(self._retriever.ranker, job.from_index))

    def pools(self, questions: Sequence[Question]) -> list[list[int]]:
        """Rows for each question: positives, index and BM25 in turn, then random rows, none that the question excludes.

        With published pools, all rows of a question's own pool, whatever their number.

        Raises:
            InputError: published pools are scored, and a question has none in MEMORY.
        """
        job, store = self._job, self._retriever.store
        named = [QuestionRows.of(q, store) for q in questions]
        if job.published:
            for question, rows in zip(questions, named, strict=True):
                if not rows.pool:
                    raise InputError(
                        f"--published-pools: question {question.question_id!r} has no candidate_ids in {job.memory}; "
                        "give the MEMORY of the corpus that it was published with, or leave the option out"
                    )
            return [list(rows.pool) for rows in named]
        texts = [q.question for q in questions]
        vectors = self._retriever.queries(texts) if job.from_index else None
        queries = Queries(texts, [rows.excluded for rows in named], vectors)
        own = own_candidates(queries, named, self._sources, positives=job.positives, size=job.pool_size)
        pools = []
        for question, candidates, rows in zip(questions, own, named, strict=True):
            rng = torch.Generator().manual_seed(_number(f"{job.seed} {question.question_id}"))
            pools.append(fill_at_random(candidates, store.row_ids, rows.excluded, job.pool_size, rng))
        return pools

    def score(self, question: Question, pool: Sequence[int]) -> Scored:
        """Likelihood of the question's first answer given each row of its pool alone, and given none."""
        memory_NMD = self._retriever.memories(pool).to(self._retriever.model.backbone.device)
        memories = [*(m[None] for m in memory_NMD), memory_NMD[:0]]
        count = len(memories)
        nats, _ = self._retriever.model.answer_log_likelihood(
            [question.question] * count, memories, [question.answers[0]] * count
        )
        *given, without = nats.tolist()
        return Scored(question.question_id, tuple(pool), tuple(given), without)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class ScoreShard(beam.DoFn):
    """Shard number → `score_shard`."""

    def __init__(self, job: Job, num_shards: int) -> None:
        self._job, self._num_shards = job, num_shards
        self._shared = Shared()

    def process(self, number: int) -> Iterator[dict[str, Any]]:
        """Score one shard."""
        yield score_shard(self._job, number, self._num_shards, lambda: self._shared.acquire(lambda: Scorer(self._job)))


class Worker:
    """A process of the local run."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Made by the first shard that needs it."""
        return Scorer(self._job)

    def score(self, number: int, num_shards: int) -> dict[str, Any]:
        """See `score_shard`."""
        return score_shard(self._job, number, num_shards, lambda: self.scorer)


def score_shard(job: Job, number: int, num_shards: int, scorer: Callable[[], Scorer]) -> dict[str, Any]:
    """Score and write one shard, unless it is finished.

    Args:
        job: the job.
        number: of the shard.
        num_shards: of the UTILITIES.
        scorer: called if there is something to score.

    Returns:
        The shard's manifest entry; or bad input as `error`.
    """
    name = shard_name(number, num_shards)
    own = questions_of(job)[number::num_shards]
    progress = ShardProgress(job.output, name, len(own))
    progress.tell(0)
    try:
        if folders.folder(job.output).sizes([f"{name}/{FILE}"]):
            entry = file_entry(job.output, f"{name}/{FILE}", len(own))
        else:
            with torch_threads(1):
                scored = []
                for question, pool in zip(own, scorer().pools(own), strict=True):
                    scored.append(scorer().score(question, pool))
                    progress.tell(len(scored))
            entry = write_shard(job.output, name, scored)
    except InputError as error:
        return {"error": str(error)}
    progress.tell(len(own))
    return entry


def questions_of(job: Job) -> list[Question]:
    """The questions that are scored, in the order of their ids.

    Raises:
        InputError: there is none.
    """
    return sorted(read_questions(job.questions, job.split or None), key=lambda q: q.question_id)


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


def job_of(options: argparse.Namespace) -> Job:
    """The job of the arguments.

    Raises:
        InputError: a number is out of range.
    """
    for name, least in (("pool_size", 2), ("from_index", 0), ("from_bm25", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {least} or more")

    def whole(path: str) -> str:
        return paths.absolute(path) if path else ""

    return Job(
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
                f"--output {output}: holds utilities of another recipe (other questions, checkpoint, MEMORY or settings); choose another "
                "directory, or replace them with --overwrite"
            )
        place.remove([MANIFEST, *shards])
    place.write(PLAN, plan)


def score_on_beam(job: Job, num_shards: int, pipeline: beam.Pipeline) -> list[dict[str, Any]]:
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


def score_here(job: Job, num_shards: int, num_workers: int) -> list[dict[str, Any]]:
    """What `score_shard` returns for all shards, scored on this machine's cores.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    with WorkerPool(num_workers, Worker, job) as pool:
        return list(pool.map(functools.partial(Worker.score, num_shards=num_shards), range(num_shards)))


def run(
    job: Job, score: Callable[[int], list[dict[str, Any]]], recipe: dict[str, Any], lease: Lease | None = None
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


if __name__ == "__main__":
    command_line(main)
