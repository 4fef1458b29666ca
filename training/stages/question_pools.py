"""Pools of a step's questions: each rank finds candidates for its own questions, and all ranks exchange them.

Shapes: B questions, M memory tokens, D hidden size.
"""

import torch
from torch import Tensor

from clara.arrays import NO_ROW
from clara.config.stages import Joint
from clara.data.questions import Question, by_target
from clara.model.model import ClaraModel
from clara.retrieval.pools import QuestionRows
from training.loop.balanced import sample_by_target
from training.loop.engine import Engine
from training.loop.loop import sample
from training.refresh.working_set import UpcomingCandidates
from training.stages.candidates import Candidates, generator

_QUERIES_AT_ONCE = 16
# Positions for random numbers that belong to no pool.
_RIGHT_MEMORY_POSITION = 30_000


class QuestionPools:
    """Draws rows for training questions, which are named by their number in `questions`.

    Attributes:
        questions: of the training split.
        broken: the last queries of this rank were not finite, so that its pools are placeholders.
    """

    def __init__(
        self, model: ClaraModel, questions: list[Question], settings: Joint, seed: int, candidates: Candidates
    ) -> None:
        """Nothing is searched yet.

        Args:
            model: whose query reasoner encodes the questions.
            questions: of the training split.
            settings: which sources, and N.
            seed: of the run.
            candidates: over the MEMORY version in use.
        """
        self.questions = questions
        self.broken = False
        self._model, self._settings, self._seed, self._candidates = model, settings, seed, candidates
        self._known: dict[int, QuestionRows] = {}
        self._targets = by_target(questions) if settings.balance_targets else []
        self._searches = candidates.index is not None and settings.from_index > 0 and not settings.published_pool

    def of_step(self, step: int) -> list[int]:
        """The questions of a step (0-based), the same on every rank."""
        count = self._settings.questions_per_step
        if self._settings.balance_targets:
            return sample_by_target(self._seed, step, count, self._targets)
        return sample(self._seed, step, count, len(self.questions))

    def known_rows(self, question: int) -> QuestionRows:
        """Rows of a question that are known without a search. They are the same in every version of MEMORY."""
        if question not in self._known:
            self._known[question] = QuestionRows.of(self.questions[question], self._candidates.store)
        return self._known[question]

    def candidates_of_step(self, questions: list[int], engine: Engine) -> list[list[int]]:
        """Own candidates of all questions of the step, by position in it (a collective).

        Args:
            questions: of this rank.
            engine: rank r holds positions r, r + world, and so on.
        """
        own, size = self._own_candidates(questions), self._settings.num_candidates
        rows = torch.full((len(own), size), NO_ROW, dtype=torch.int64)
        for row, candidates in enumerate(own):
            rows[row, : len(candidates)] = torch.tensor(candidates, dtype=torch.int64)
        in_order = engine.gather(rows).transpose(0, 1).reshape(-1, size)
        return [[r for r in row if r != NO_ROW] for row in in_order.tolist()]

    def _own_candidates(self, questions: list[int]) -> list[list[int]]:
        chosen = [self.questions[q] for q in questions]
        query_BMD = encode_questions(self._model, chosen) if self._searches else None
        self.broken = query_BMD is not None and not bool(torch.isfinite(query_BMD).all())
        if self.broken:  # A search would find nothing, and no rank uses the batches of this step.
            return [self._candidates.store.row_ids[: self._settings.num_candidates].tolist()] * len(questions)
        return self._candidates.own(chosen, [self.known_rows(q) for q in questions], query_BMD)

    def upcoming(self, updates: int) -> UpcomingCandidates:
        """What the steps after that many updates will use, `joint.refresh.look_ahead_steps` of them."""
        settings = self._settings
        steps = range(updates, min(updates + settings.refresh.look_ahead_steps, settings.steps))
        asked = [question for step in steps for question in self.of_step(step)]
        rows = [row for question in asked for row in self._rows_without_search(self.known_rows(question))]
        texts = [self.questions[q].question for q in dict.fromkeys(asked)] if self._searches else []
        return UpcomingCandidates(rows, texts, settings.from_index)

    def _rows_without_search(self, known: QuestionRows) -> tuple[int, ...]:
        if self._settings.published_pool:
            return known.pool
        return known.positive if self._settings.inject_positives else ()

    def right_row(self, step: int, position: int, question: int) -> int | None:
        """A known positive of a question, for a share `joint.right_memory_share` of all questions."""
        positive, share = self.known_rows(question).positive, self._settings.right_memory_share
        if not share or not positive:
            return None
        rng = generator(self._seed, step, position + _RIGHT_MEMORY_POSITION)
        if float(torch.rand((), generator=rng)) >= share:
            return None
        return positive[int(torch.randint(len(positive), (), generator=rng))]


@torch.no_grad()
def encode_questions(model: ClaraModel, questions: list[Question]) -> Tensor:
    """Query vectors `[B, M, D]` of the query reasoner with its present weights."""
    parts = [
        model.encode_questions([q.question for q in questions[i : i + _QUERIES_AT_ONCE]])
        for i in range(0, len(questions), _QUERIES_AT_ONCE)
    ]
    return torch.cat(parts)
