"""Draws a question's pool, and scores each of its rows: the work of `score_utilities` on its workers."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from clara.data.questions import Question
from clara.data.utilities import FILE, Scored, write_shard
from clara.errors import InputError
from clara.memory.shards import shard_name
from clara.processes import torch_threads
from clara.retrieval.pools import QuestionRows, Source, SourceInputs, fill_at_random, own_candidates, text_sources
from clara.retrieval.ranker import Queries
from clara.retrieval.retriever import Retriever
from clara.storage import folders
from clara.storage.manifest import file_entry
from pipelines.job.progress import ShardProgress
from pipelines.score_utilities.job import ScoringJob, questions_of


class Scorer:
    """Draws a question's pool and reads each of its rows: a model, a MEMORY and its texts, once a process."""

    def __init__(self, job: ScoringJob) -> None:
        """Open everything.

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
        self._sources = [] if job.published else text_sources(job, inputs)
        if job.from_index and not job.published:
            self._sources.insert(0, Source(self._retriever.memory_ranker, job.from_index))

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
            with torch_threads(1):
                scored = []
                for question, pool in zip(own, scorer().pools(own), strict=True):
                    scored.append(scorer().score(question, pool))
                    progress.report(len(scored))
            entry = write_shard(job.output, name, scored)
    except InputError as error:
        return {"error": str(error)}
    progress.report(len(own))
    return entry
