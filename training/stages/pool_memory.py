"""Memory that a pool is scored with: as it is stored, or encoded again if it is old (`joint.refresh.rerank`).

Shapes: B questions, N candidates, M memory tokens, D hidden size.
"""

import time
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from clara.config.stages import Joint
from clara.model.model import ClaraModel
from training.refresh.versions import Versions
from training.stages.candidates import Candidates


class PoolMemory:
    """Gives the memory of the pools of a step, without gradient.

    Attributes:
        rerank_seconds: spent on encoding again; the caller resets it.
    """

    def __init__(self, model: ClaraModel, candidates: Candidates, versions: Versions, settings: Joint) -> None:
        """Read from these candidates; nothing is read yet."""
        self.rerank_seconds = 0.0
        self._model, self._candidates, self._versions, self._settings = model, candidates, versions, settings

    def of(
        self, step: int, pools: Sequence[Sequence[int]], right: Sequence[int | None]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Memory of pools `[B, N, M, D]`, false for their padding `[B, N]`, and memory of the right rows `[M, D]` each.

        Args:
            step: 0-based.
            pools: rows of each question, N at most.
            right: for each question a row that is not scored but read, or None.
        """
        device = self._model.backbone.device
        memory_BNMD, valid_BN = self._candidates.memory(pools, self._settings.num_candidates)
        rights = [None if row is None else self._candidates.stored([row])[0].to(device) for row in right]
        memory_BNMD = memory_BNMD.to(device)
        if self.encodes_afresh(step):
            self._encode_afresh(step, pools, right, memory_BNMD, rights)
        return memory_BNMD, valid_BN, rights

    def encodes_afresh(self, step: int) -> bool:
        """Whether this step encodes old rows again: if configured, and if some row is old enough."""
        refresh = self._settings.refresh
        return refresh.rerank and self._versions.ages.oldest(step) > refresh.rerank_lag_steps

    def _encode_afresh(
        self,
        step: int,
        pools: Sequence[Sequence[int]],
        right: Sequence[int | None],
        memory_BNMD: Tensor,
        rights: list[Tensor | None],
    ) -> None:
        """Replace memory that is older than `joint.refresh.rerank_lag_steps` by that of the current compressor."""
        began = time.monotonic()
        for number, (pool, row) in enumerate(zip(pools, right, strict=True)):
            rows = [*pool, *([] if row is None else [row])]
            older = np.flatnonzero(
                self._versions.ages.lag(rows, step) > self._settings.refresh.rerank_lag_steps
            ).tolist()
            # One pass for each question, on an empty text if no row is old: every rank makes the same collective calls.
            texts = self._candidates.token_ids([rows[position] for position in older], self._model)
            fresh = self._model.compress(texts or [[]])[: len(older)].float()
            for position, memory in zip(older, fresh, strict=True):
                if position < len(pool):
                    memory_BNMD[number, position] = memory
                else:
                    rights[number] = memory
        self.rerank_seconds += time.monotonic() - began
