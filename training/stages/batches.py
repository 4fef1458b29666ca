"""From questions of a joint step and their pools to what the step's module takes.

Shapes: B questions, N candidates, M memory tokens, D hidden size.
"""

from collections.abc import Sequence

import torch

from clara.arrays import Floats, Ids
from clara.config.stages import Joint
from clara.model.joint_batch import JointBatch, TextPool
from clara.model.model import ClaraModel
from training.stages.candidates import Candidates
from training.stages.denominator import Denominator
from training.stages.pool_memory import PoolMemory
from training.stages.question_pools import QuestionPools


class Batches:
    """Makes the micro-batches of a step; what it reads is of the MEMORY version in use."""

    def __init__(
        self,
        model: ClaraModel,
        settings: Joint,
        candidates: Candidates,
        pools: QuestionPools,
        memory: PoolMemory,
        denominator: Denominator,
    ) -> None:
        """The parts of a joint stage; nothing is read yet."""
        self._model, self._settings, self._candidates = model, settings, candidates
        self._pools, self._memory, self._denominator = pools, memory, denominator

    def of(
        self,
        step: int,
        positions: Sequence[int],
        questions: Sequence[int],
        pools: Sequence[Sequence[int]],
        unread: tuple[Ids, Floats] | None,
    ) -> JointBatch:
        """The batch of the questions at these positions of a step.

        Args:
            step: 0-based.
            positions: in the step.
            questions: their numbers.
            pools: their rows.
            unread: rows of the step's denominator, see `Denominator.of_step`.
        """
        device = self._model.backbone.device
        chosen = [self._pools.questions[q] for q in questions]
        known = [self._pools.known_rows(q) for q in questions]
        right = [self._pools.right_row(step, p, q) for p, q in zip(positions, questions, strict=True)]
        memory_BNMD, valid_BN, right_memory = self._memory.of(step, pools, right)
        features_BNF = self._candidates.features(chosen, pools, valid_BN.shape[1])
        positive_BN = torch.zeros_like(valid_BN)
        for row, (pool, k) in enumerate(zip(pools, known, strict=True)):
            positive_BN[row, : len(pool)] = torch.tensor([r in k.positive for r in pool], dtype=torch.bool)
        trains = step < self._settings.compressor_updates
        mean = torch.from_numpy(self._candidates.store.mean).to(device) if self._candidates.score.centred else None
        return JointBatch(
            questions=[self._model.question_ids(q.question) for q in chosen],
            prompts=[self._model.prompts.question(q.question, q.answers[0]) for q in chosen],
            memory=memory_BNMD.to(device),
            valid=valid_BN.to(device),
            positive=positive_BN.to(device),
            candidates=[self._candidates.token_ids(pool, self._model) for pool in pools] if trains else [],
            compressor_frozen=not trains,
            right_memory=right_memory,
            corpus_mean=mean,
            features=None if features_BNF is None else features_BNF.to(device),
            texts=[
                TextPool(q.question, q.answers[0], self._candidates.texts(pool))
                for q, pool in zip(chosen, pools, strict=True)
                if self._settings.reads == "text"
            ],
            unread=self._denominator.of_batch(unread, chosen, known, pools, device),
        )
