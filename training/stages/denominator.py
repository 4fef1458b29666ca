"""Rows that are not read and enter the softmax of the losses by utility and by label (`joint.denominator`).

Their memory is there, and scoring all of them is one matrix product. Rows of the step's pools count once. Of the rest,
all n count, or S rows that are drawn uniformly, n/S times each: the mean of that sum over draws is the whole sum.

What is drawn depends on the seed and the step alone, not on how many ranks share the step.

Shapes: B questions, S rows, F numbers of a unit vector.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from clara.arrays import Floats, Ids
from clara.config.stages import Joint
from clara.data.questions import Question
from clara.data.utilities import Scored
from clara.memory.store import MemoryStore
from clara.model.geometry import represent
from clara.model.joint_batch import Unread
from clara.retrieval.pools import QuestionRows
from training.stages.candidates import Candidates, generator

_PLACE = 40_000  # of the random numbers of a draw, which belong to no question
_ROWS_AT_ONCE = 512
_HELD_BYTES = 256 * 2**20  # unit vectors of all rows that may be drawn, held between steps


class Denominator:
    """Chooses the rows of each step, and gives their unit vectors for the MEMORY in use."""

    def __init__(self, candidates: Candidates, settings: Joint, seed: int, rows: Ids, counts: Floats) -> None:
        """Keep the rows that may be drawn.

        Args:
            candidates: over the MEMORY version in use.
            settings: section `joint`.
            seed: of the draws.
            rows: ascending; see `rows_that_count`.
            counts: how often each of them counts.
        """
        self._candidates, self._settings, self._seed = candidates, settings, seed
        self._rows, self._log_counts = rows, np.log(counts).astype(np.float32)
        self._held: tuple[MemoryStore, Tensor] | None = None

    def of_step(self, step: int, rows_of_step: Iterable[int]) -> tuple[Ids, Floats] | None:
        """The rows of a step, ascending, and the log of how often each counts; None where pools are alone.

        Args:
            step: 0-based.
            rows_of_step: of all pools of the step, the same on every rank.
        """
        read = np.unique(np.fromiter(rows_of_step, np.int64))
        if self._settings.denominator == "others":
            return read, np.zeros(len(read), np.float32)
        if not len(self._rows):  # the pool alone, or no row helps any question
            return None
        is_read, wanted = np.isin(self._rows, read), self._settings.denominator_rows
        rest = np.flatnonzero(~is_read)
        if not wanted or wanted >= len(rest):
            return self._rows, self._log_counts
        drawn = torch.randperm(len(rest), generator=generator(self._seed, step, _PLACE))[:wanted].numpy()
        chosen = np.sort(np.concatenate([rest[drawn], np.flatnonzero(is_read)]))
        more = np.where(is_read[chosen], 0, np.log(len(rest) / wanted)).astype(np.float32)
        return self._rows[chosen], self._log_counts[chosen] + more

    def of_batch(
        self,
        drawn: tuple[Ids, Floats] | None,
        questions: Sequence[Question],
        known: Sequence[QuestionRows],
        pools: Sequence[Sequence[int]],
        device: torch.device,
    ) -> Unread | None:
        """The rows of a step for some of its questions: without their own pools and what they exclude.

        Args:
            drawn: as returned by `of_step`.
            questions: B of them.
            known: their rows.
            pools: their own.
            device: of the model.
        """
        if drawn is None:
            return None
        rows, log_counts = drawn
        never_BS = np.array([np.isin(rows, [*pool, *k.excluded]) for pool, k in zip(pools, known, strict=True)])
        features_BSf = self._candidates.features(questions, [rows.tolist()] * len(questions), len(rows))
        return Unread(
            self._unit(rows).to(device),
            torch.from_numpy(np.where(never_BS, -np.inf, log_counts)).to(device),
            None if features_BSf is None else features_BSf.to(device),
        )

    def _unit(self, rows: Ids) -> Tensor:
        """Unit vectors `[S, F]` of rows, as MEMORY is now."""
        store, score = self._candidates.store, self._candidates.score
        numbers = store.hidden_size * (1 if score.pooling == "slot_mean" else store.num_memory_tokens)
        if 2 * len(rows) < len(self._rows) or not len(self._rows) or 4 * numbers * len(self._rows) > _HELD_BYTES:
            return self._computed(rows)
        if self._held is None or self._held[0] is not store:
            self._held = store, self._computed(self._rows)
        return self._held[1][np.searchsorted(self._rows, rows)]

    def _computed(self, rows: Ids) -> Tensor:
        candidates = self._candidates
        mean = torch.from_numpy(candidates.store.mean) if candidates.score.centred else None
        blocks = [rows[begin : begin + _ROWS_AT_ONCE] for begin in range(0, len(rows), _ROWS_AT_ONCE)]
        return torch.cat([represent(candidates.stored(block.tolist()), candidates.score, mean) for block in blocks])


def rows_that_count(
    settings: Joint, row_ids: Ids, known: Iterable[QuestionRows], scored: Iterable[Scored]
) -> tuple[Ids, Floats]:
    """Rows of `joint.denominator`, ascending, and how often each counts; none for `pool` and `others`.

    Args:
        settings: section `joint`.
        row_ids: of MEMORY.
        known: rows of all training questions.
        scored: their utilities, if they were scored beforehand.
    """
    counts: Counter[int] = Counter()
    if settings.denominator == "all":
        return row_ids, np.ones(len(row_ids), np.float32)
    if settings.denominator == "targets":
        counts.update(row for rows in known for row in rows.positive)
    if settings.denominator in ("helpful", "frequency"):
        for one in scored:
            counts.update(r for r, nats in zip(one.row_ids, one.log_likelihoods, strict=True) if nats > one.without)
    rows = np.array(sorted(counts), np.int64)
    often = [counts[row] if settings.denominator == "frequency" else 1 for row in rows.tolist()]
    return rows, np.array(often, np.float32)
