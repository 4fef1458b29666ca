"""A quick look at held-out questions during joint training. The full evaluation is a command of its own."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from clara.memory import MemoryStore
from clara.metrics import exact_match
from clara.model import ClaraModel
from clara.pools import Known
from clara.questions import Question
from training.candidates import NO_ROW, Candidates
from training.engine import Engine

_DEPTHS = (1, 5, 20)
_T = TypeVar("_T")
_AT_ONCE = 8


def evenly(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of the items, evenly spread, in their order."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def choose(questions: list[Question], count: int) -> list[Question]:
    """Held-out questions with a known positive: of split `unseen`, else `seen`, evenly spread."""
    for split in ("unseen", "seen"):
        found = [q for q in questions if q.split == split and q.positive_ids]
        if found:
            return evenly(found, count)
    return []


class HeldOut:
    """Recall over the whole INDEX, and what the answer's tokens cost with the right memory and with a wrong one."""

    def __init__(self, questions: list[Question], *, num_selected: int = 1, answer_tokens: int = 0) -> None:
        """Choose what is measured.

        Args:
            questions: as of `choose`.
            num_selected: K documents that an answer is generated from.
            answer_tokens: longest answer; 0: none is generated.
        """
        self._questions, self._num_selected, self._answer_tokens = questions, num_selected, answer_tokens

    @torch.no_grad()
    def evaluate(self, model: ClaraModel, candidates: Candidates, engine: Engine) -> dict[str, float]:
        """Figures over all ranks (collectives): `held_out_recall_at_K`, `held_out_right_nats`, `held_out_wrong_nats` per token.

        On demand `held_out_exact_match` of generated answers. Every rank takes as many questions; what does not divide evenly is left out.
        """
        share = len(self._questions) // engine.world
        own = self._questions[engine.rank :: engine.world][:share]
        sums = np.zeros(len(_DEPTHS) + 5)
        for begin in range(0, len(own), _AT_ONCE):
            sums += self._measure(model, candidates, own[begin : begin + _AT_ONCE])
        *hits, exact, right, wrong, tokens, count = engine.sum(sums.tolist())
        if not count:
            return {}
        figures = {f"held_out_recall_at_{depth}": hit / count for depth, hit in zip(_DEPTHS, hits, strict=True)}
        if self._answer_tokens:
            figures["held_out_exact_match"] = exact / count
        return figures | {"held_out_right_nats": right / tokens, "held_out_wrong_nats": wrong / tokens}

    def _measure(
        self, model: ClaraModel, candidates: Candidates, questions: list[Question]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        store, index = candidates.store, candidates.index
        known = [Known.of(q, store) for q in questions]
        hits, exact = np.zeros(len(_DEPTHS)), 0.0
        if index is not None:
            query = model.encode_questions([q.question for q in questions]).cpu().numpy()
            found, _ = index.search(
                query, max(_DEPTHS), first_level=max(*_DEPTHS, candidates.first_level), exclude=[set(k.banned) for k in known]
            )
            hits = np.array(
                [[bool({*row[:d]} & {*k.positive}) for d in _DEPTHS] for row, k in zip(found.tolist(), known, strict=True)]
            ).sum(axis=0)
            if self._answer_tokens:
                exact = self._exact_matches(model, store, questions, [row[: self._num_selected] for row in found.tolist()])
        right = [k.positive[0] if k.positive else int(store.row_ids[0]) for k in known]
        wrong = [_other(store.row_ids, row) for row in right]
        texts, answers = [q.question for q in questions], [q.answers[0] for q in questions]
        costs = []
        for rows in (right, wrong):
            memories = [candidates.stored([row]).to(model.backbone.device) for row in rows]
            likelihood, tokens = model.answer_log_likelihood(texts, memories, answers)
            costs.append(-float(likelihood.sum()))
        return np.array([*hits, exact, *costs, float(tokens.sum()), len(questions)])

    def _exact_matches(self, model: ClaraModel, store: MemoryStore, questions: list[Question], found: list[list[int]]) -> float:
        """How many answers from the documents found are right, to the word. Every rank generates at this time, each its own questions'."""
        memories = [torch.from_numpy(store.memory([r for r in rows if r != NO_ROW])).to(model.backbone.device) for rows in found]
        told = model.generate([q.question for q in questions], memories, max_new_tokens=self._answer_tokens, together=True)
        return sum(exact_match(answer, q.answers) for answer, q in zip(told, questions, strict=True))


def _other(row_ids: np.ndarray[tuple[int], np.dtype[np.int64]], row: int) -> int:
    """A row that is as good as random, always the same, and not this one."""
    place = (int(np.searchsorted(row_ids, row)) + len(row_ids) // 2 + 1) % len(row_ids)
    return int(row_ids[place])
