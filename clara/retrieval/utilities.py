"""Utilities of questions by a system: pools of candidates, and the likelihood of the answer given each row alone.

Shapes: Q questions, M memory tokens, D hidden size.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from clara.data.questions import Question
from clara.data.utilities import Scored
from clara.memory.store import MemoryStore
from clara.model.pool_likelihood import log_likelihoods_of_each
from clara.retrieval.pools import QuestionRows, Source, fill_at_random, own_candidates
from clara.retrieval.ranker import Queries
from clara.retrieval.retriever import Retriever


def draw_pools(
    questions: Sequence[Question],
    vectors_QMD: Tensor | None,
    sources: Sequence[Source],
    store: MemoryStore,
    *,
    positives: bool,
    size: int,
    seed: int,
) -> list[list[int]]:
    """Pools of `size` rows: positives, the best rows of all sources in turn, then random rows; no excluded row.

    Random rows of a question depend on the seed and its id alone.

    Args:
        questions: Q of them.
        vectors_QMD: their query vectors; None where no source ranks by them.
        sources: of candidates.
        store: MEMORY.
        positives: whether the known positives are among the rows.
        size: rows of a pool, or fewer where MEMORY is small.
        seed: of the random rows.
    """
    named = [QuestionRows.of(question, store) for question in questions]
    queries = Queries([q.question for q in questions], [rows.excluded for rows in named], vectors_QMD)
    own = own_candidates(queries, named, sources, positives=positives, size=size)
    pools = []
    for question, candidates, rows in zip(questions, own, named, strict=True):
        rng = torch.Generator().manual_seed(_number(f"{seed} {question.question_id}"))
        pools.append(fill_at_random(candidates, store.row_ids, rows.excluded, size, rng))
    return pools


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def score_pool(retriever: Retriever, question: Question, pool: Sequence[int], *, front_once: bool = False) -> Scored:
    """Likelihood of a question's first answer given each row of its pool alone, and given none.

    Args:
        retriever: whose generator reads.
        question: its first answer is scored.
        pool: rows of MEMORY.
        front_once: the LM reads what is in front of the documents once, not once for each row: faster, and equal up to
            rounding. Not for a model whose parameters are shared out among ranks.
    """
    memory_NMD = retriever.memories(pool).to(retriever.model.backbone.device)
    memories = [*(m[None] for m in memory_NMD), memory_NMD[:0]]
    count, answer = len(memories), question.answers[0]
    if front_once:
        nats = log_likelihoods_of_each(retriever.model, question.question, answer, memories)
    else:
        nats, _ = retriever.model.answer_log_likelihood([question.question] * count, memories, [answer] * count)
    *given, without = nats.tolist()
    return Scored(question.question_id, tuple(pool), tuple(given), without)
