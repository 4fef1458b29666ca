"""Utilities of questions by a system: pools of candidates, and the likelihood of the answer given each row alone.

Also the utility of one row among those that an answer was read from.

Shapes: Q questions, M memory tokens, D hidden size.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara.data.questions import Question
from clara.data.utilities import Scored
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.model.decoding import Generation, check_length, num_prompt_tokens
from clara.retrieval.pools import QuestionRows, Source, fill_at_random, own_candidates
from clara.retrieval.ranker import Queries
from clara.retrieval.retriever import Retriever

READS_TEXT = (
    "the CHECKPOINT's generator reads the text of passages (model.reads is 'text'), and utilities are what their "
    "memory is worth to an answer; give a CHECKPOINT whose generator reads memory"
)


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
        front_once: see `ClaraModel.answer_losses`; faster, and not for a model that is shared out among ranks.

    Raises:
        InputError: the generator reads text: utilities are those of memory.
    """
    if retriever.reads_text:
        raise InputError(READS_TEXT)
    memory_NMD = retriever.memories(pool).to(retriever.model.backbone.device)
    memories = [*(m[None] for m in memory_NMD), memory_NMD[:0]]
    count, answer = len(memories), question.answers[0]
    nats, _ = retriever.model.answer_log_likelihood(
        [question.question] * count, memories, [answer] * count, front_once=front_once
    )
    *given, without = nats.tolist()
    return Scored(question.question_id, tuple(pool), tuple(given), without)


@dataclass(frozen=True)
class RowUtility:
    """How likely an answer is given all its rows, and given all but one, in nats."""

    given: float
    without: float
    num_tokens: int

    @property
    def utility(self) -> float:
        """What the row adds to the answer's log-likelihood."""
        return self.given - self.without


def row_utility(
    retriever: Retriever, question: str, answer: str, row_ids: Sequence[int], left_out: int, max_answer_tokens: int
) -> RowUtility:
    """The utility of one of the rows that an answer was read from; one pass over two prompts.

    Args:
        retriever: of the system that answered.
        question: text.
        answer: text.
        row_ids: what it was read from, in that order, each once.
        left_out: one of them.
        max_answer_tokens: longest answer, its end not counted.

    Raises:
        InputError: `left_out` is none of the rows, one of them is no live row, or the answer is too long.
    """
    if left_out not in row_ids:
        raise InputError(f"row {left_out} is none of the answer's passages; name one of them")
    model = retriever.model
    kept = [row for row in row_ids if row != left_out]
    prompts = [model.prompts.question(question, answer, retriever.texts(rows)) for rows in (row_ids, kept)]
    memories = [retriever.memories(rows).to(model.backbone.device) for rows in (row_ids, kept)]
    prompt = prompts[0]
    if len(prompt.answer) > max_answer_tokens + 1:
        raise InputError(f"the answer has {len(prompt.answer) - 1} tokens; expected {max_answer_tokens} at most")
    check_length(model, num_prompt_tokens(model, Generation(prompt, memories[0], 0)), len(prompt.answer))
    with torch.no_grad():
        given, without = (-model.answer_losses(prompts, memories).per_row()).tolist()
    return RowUtility(given, without, len(prompt.answer))
