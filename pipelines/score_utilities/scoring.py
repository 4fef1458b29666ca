"""Draws a question's pool, and scores each of its rows: the work of `score_utilities` on its workers."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from clara.data.questions import Question
from clara.data.utilities import FILE, Scored, read_utilities, write_shard
from clara.errors import InputError
from clara.memory.shards import shard_name
from clara.processes import torch_threads
from clara.retrieval.pools import QuestionRows, Source, SourceInputs, text_sources
from clara.retrieval.retriever import Retriever
from clara.retrieval.utilities import draw_pools, score_pool
from clara.storage import folders
from clara.storage.manifest import file_entry
from pipelines.job.progress import ShardProgress
from pipelines.score_utilities.job import ScoringJob, questions_of


class Scorer:
    """Draws a question's pool and reads each of its rows: a model, a MEMORY and its texts, once a process."""

    def __init__(self, job: ScoringJob) -> None:
        """Open the model, MEMORY, INDEX and the sources of candidates.

        Raises:
            InputError: see `Retriever.open` and `text_sources`.
        """
        self._job = job
        self._retriever = Retriever.open(
            job.checkpoint,
            job.memory,
            job.index or None,
            backbone=job.backbone,
            device=job.device,
            retrieval=job.retrieval,
        )
        index = self._retriever.index
        artefact = None if index is None else index.artefact
        inputs = SourceInputs(self._retriever.store, artefact, job.retrieval, job.device)
        self._sources = [] if job.published else text_sources(job.sources, inputs)
        if job.sources["memory"] and not job.published:
            self._sources.insert(0, Source(self._retriever.memory_ranker, job.sources["memory"]))

    def pools(self, questions: Sequence[Question]) -> list[list[int]]:
        """Rows for each question, see `draw_pools`; with published pools, all rows of that pool.

        Raises:
            InputError: published pools are scored, and a question has none in MEMORY.
        """
        job, store = self._job, self._retriever.store
        if job.published:
            named = [QuestionRows.of(q, store) for q in questions]
            for question, rows in zip(questions, named, strict=True):
                if not rows.pool:
                    raise InputError(
                        f"--published-pools: question {question.question_id!r} has no candidate_ids in {job.memory}; "
                        "give the MEMORY of the corpus that it was published with, or leave the option out"
                    )
            return [list(rows.pool) for rows in named]
        vectors = self._retriever.queries([q.question for q in questions]) if job.sources["memory"] else None
        return draw_pools(
            questions, vectors, self._sources, store, positives=job.positives, size=job.pool_size, seed=job.seed
        )

    def score(self, question: Question, pool: Sequence[int]) -> Scored:
        """See `score_pool`."""
        return score_pool(self._retriever, question, pool, front_once=True)


class Worker:
    """A process of the local run."""

    def __init__(self, job: ScoringJob) -> None:
        self._job = job

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Made by the first shard that needs it."""
        return Scorer(self._job)

    def score(self, number: int, num_shards: int) -> dict[str, Any]:
        """See `score_shard`."""
        return score_shard(self._job, number, num_shards, lambda: self.scorer)


def score_shard(job: ScoringJob, number: int, num_shards: int, scorer: Callable[[], Scorer]) -> dict[str, Any]:
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
    progress.report(0)
    try:
        if folders.folder(job.output).sizes([f"{name}/{FILE}"]):
            entry = file_entry(job.output, f"{name}/{FILE}", len(own))
        else:
            known = read_utilities(job.reuse) if job.reuse else {}
            scored = {q.question_id: known[q.question_id] for q in own if q.question_id in known}
            left = [q for q in own if q.question_id not in scored]
            with torch_threads(1):
                for question, pool in zip(left, scorer().pools(left) if left else (), strict=True):
                    scored[question.question_id] = scorer().score(question, pool)
                    progress.report(len(scored))
            entry = write_shard(job.output, name, [scored[q.question_id] for q in own])
    except InputError as error:
        return {"error": str(error)}
    progress.report(len(own))
    return entry
