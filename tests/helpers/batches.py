"""Questions about the tiny corpus, and batches of the three stages over it."""

from collections.abc import Sequence

import torch

from clara.config.stages import Joint
from clara.data.questions import Question
from clara.model.joint_batch import JointBatch
from clara.model.model import ClaraModel
from clara.model.steps import InstructBatch, PretrainBatch
from tests.helpers import tiny

DOCUMENTS = tiny.documents()
QUESTIONS = [(f"Who is the mayor of {row['title']}?", row["title"][:3]) for row in DOCUMENTS]
NUM_CANDIDATES, NUM_SELECTED = 4, 3


def question(number: int) -> Question:
    """About the mayor of a document."""
    row = DOCUMENTS[number]
    return Question(
        f"q{number}", f"Who is the mayor of {row['title']}?", (row["title"][:3],), (row["id"],), split="train"
    )


def touched(model: ClaraModel) -> set[str]:
    """The roles that received a gradient other than zero."""
    roles = ("compressor", "query_reasoner", "generator", "memory_tokens", "backbone")
    return {role for role in roles if any(p.grad is not None and p.grad.any() for p in model.role_parameters(role))}


def pretrain_batch(model: ClaraModel, rows: Sequence[int]) -> PretrainBatch:
    prompts = [model.prompts.pairs([QUESTIONS[r][0], "Where?"], [QUESTIONS[r][1], "There"], 0.5) for r in rows]
    return PretrainBatch([model.document_ids(DOCUMENTS[r]["text"])[: 20 + 7 * r] for r in rows], prompts)


def instruct_batch(model: ClaraModel, selected: Sequence[Sequence[int]]) -> InstructBatch:
    """Each question has other documents, so that the batch can be split."""
    offsets = [sum(map(len, selected[:i])) for i in range(len(selected))]
    documents = [model.document_ids(DOCUMENTS[d]["text"])[:30] for chosen in selected for d in chosen]
    prompts = [model.prompts.question(*QUESTIONS[chosen[0]]) for chosen in selected]
    return InstructBatch(
        prompts, documents, [[o + i for i in range(len(c))] for o, c in zip(offsets, selected, strict=True)]
    )


def joint_batch(model: ClaraModel, counts: Sequence[int] = (4, 2, 3), *, stale: float = 0.0) -> JointBatch:
    """Pools of one to four candidates, the first a positive except in the second; `stale`: noise on memory."""
    pools = [[(3 * row + n) % len(DOCUMENTS) for n in range(count)] for row, count in enumerate(counts)]
    texts = [[model.document_ids(DOCUMENTS[d]["text"])[: 25 + 5 * d] for d in pool] for pool in pools]
    memory = torch.zeros(
        len(counts), NUM_CANDIDATES, tiny.NUM_MEMORY_TOKENS, model.hidden_size, dtype=model.backbone.dtype
    )
    rng = torch.Generator().manual_seed(9)
    for row, pool in enumerate(texts):
        if pool:
            fresh = model.compress(pool)
            memory[row, : len(pool)] = fresh + stale * torch.randn(fresh.shape, generator=rng).to(fresh.dtype)
    valid = torch.arange(NUM_CANDIDATES)[None] < torch.tensor(counts)[:, None]
    positive = torch.zeros_like(valid)
    positive[::2, 0] = True
    asked = [QUESTIONS[3 * row] for row in range(len(counts))]
    return JointBatch(
        questions=[model.question_ids(q) for q, _ in asked],
        prompts=[model.prompts.question(q, a) for q, a in asked],
        memory=memory,
        valid=valid,
        positive=positive,
        candidates=texts,
    )


def joint(**options: object) -> Joint:
    return Joint(num_candidates=NUM_CANDIDATES, num_selected=NUM_SELECTED, temperature=0.1, **options)
