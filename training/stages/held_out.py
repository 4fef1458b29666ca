"""A quick measurement on held-out questions during joint training; the full evaluation is a separate command."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara.arrays import Floats
from clara.data.questions import Question
from clara.errors import InputError
from clara.index.scores import best
from clara.metrics import exact_match
from clara.model.array_geometry import unit_rows
from clara.model.model import ClaraModel
from clara.retrieval.pools import QuestionRows
from clara.retrieval.ranker import Queries
from training.loop.engine import Engine
from training.stages.candidates import Candidates

_DEPTHS = (1, 5, 20)
_AT_ONCE = 8


class HeldOut:
    """Measures recall, and nats of the answer given the memory that was found, the right one, and a wrong one."""

    def __init__(
        self,
        questions: list[Question],
        *,
        num_selected: int,
        published_pool: bool = False,
        fresh: bool = False,
        answer_tokens: int = 0,
        trained: Sequence[Question] = (),
    ) -> None:
        """Keep the questions; nothing is read yet.

        Args:
            questions: with a positive each.
            num_selected: K, rows that an answer is read from.
            published_pool: rank each question's own candidates instead of searching the INDEX.
            fresh: also rank published pools with memory that the current compressor encodes, as a full refresh would.
            answer_tokens: most tokens of a generated answer; 0: none is generated.
            trained: training questions. How many of the first rows are targets of theirs is measured, as a retriever
                first learns which rows are ever the answer.
        """
        self._questions, self._num_selected, self._answer_tokens = questions, num_selected, answer_tokens
        self._published_pool, self._fresh = published_pool, published_pool and fresh
        self._trained, self._targets = trained, set[int]()

    def check(self, world: int) -> None:
        """Refuse more ranks than questions: every rank measures the same number, which would be 0.

        Raises:
            InputError: there are more ranks than questions.
        """
        if len(self._questions) < world:
            raise InputError(
                f"joint.evaluate_every: {len(self._questions)} held-out questions for {world} ranks, so that none "
                "would be measured; raise "
                "joint.evaluate_questions, make more questions, or set evaluate_every=0"
            )

    def evaluate(self, model: ClaraModel, candidates: Candidates, engine: Engine) -> dict[str, float]:
        """Figures over all ranks (collectives), with MEMORY as it is stored.

        Every rank measures the same number of questions; a remainder is left out. The figures are

        * `held_out_recall_at_D` over the INDEX, or `held_out_pool_recall_at_D` over published pools,
        * nats per answer token: `held_out_answer_nats` (the K best), `held_out_right_nats`, `held_out_wrong_nats`,
        * with `fresh`: `held_out_fresh_pool_recall_at_D` and `held_out_fresh_answer_nats`,
        * with `answer_tokens`: `held_out_exact_match` of answers generated from the K best,
        * with `trained`: `held_out_trained_at_5`, the share of the first five rows that are training targets,
        * `held_out_seconds`.
        """
        began = time.monotonic()
        share = len(self._questions) // engine.world
        found = self._figures(
            engine.sum(self._sums(model, candidates, self._questions[engine.rank :: engine.world][:share]))
        )
        return found | ({"held_out_seconds": time.monotonic() - began} if found else {})

    def alone(self, model: ClaraModel, candidates: Candidates) -> dict[str, float]:
        """The same figures of all questions, measured by this process."""
        return self._figures(self._sums(model, candidates, self._questions))

    def _figures(self, sums: Sequence[float]) -> dict[str, float]:
        depths = len(_DEPTHS)
        stored, fresh, (exact, trained, answer, fresh_answer, right, wrong, tokens, count) = (
            sums[:depths],
            sums[depths : 2 * depths],
            sums[2 * depths :],
        )
        if not count:
            return {}
        name = "pool_recall_at" if self._published_pool else "recall_at"
        figures = {f"held_out_{name}_{depth}": hit / count for depth, hit in zip(_DEPTHS, stored, strict=True)}
        figures |= {
            "held_out_right_nats": right / tokens,
            "held_out_wrong_nats": wrong / tokens,
            "held_out_answer_nats": answer / tokens,
        }
        if self._trained and not self._published_pool:
            figures["held_out_trained_at_5"] = trained / count
        if self._answer_tokens:
            figures["held_out_exact_match"] = exact / count
        if self._fresh:
            figures |= {
                f"held_out_fresh_{name}_{depth}": hit / count for depth, hit in zip(_DEPTHS, fresh, strict=True)
            }
            figures["held_out_fresh_answer_nats"] = fresh_answer / tokens
        return figures

    @torch.no_grad()
    def _sums(self, model: ClaraModel, candidates: Candidates, questions: list[Question]) -> list[float]:
        sums = np.zeros(2 * len(_DEPTHS) + 8)
        for begin in range(0, len(questions), _AT_ONCE):
            sums += self._measure(model, candidates, questions[begin : begin + _AT_ONCE])
        found: list[float] = sums.tolist()
        return found

    def _measure(self, model: ClaraModel, candidates: Candidates, questions: list[Question]) -> NDArray[np.float64]:
        store = candidates.store
        known = [QuestionRows.of(q, store) for q in questions]
        query = model.encode_questions([q.question for q in questions]).float().cpu().numpy()
        found = self._found(query, candidates, questions, known)
        right = [k.positive[0] if k.positive else int(store.row_ids[0]) for k in known]
        wrong = [_other(store.row_ids, row) for row in right]
        read = [[candidates.stored(rows[: self._num_selected]) for rows in found]]
        read += [[candidates.stored([row]) for row in rows] for rows in (right, wrong)]
        exact = self._exact_matches(model, candidates, questions, found) if self._answer_tokens else 0.0
        hits, fresh_hits = _hits(found, known), np.zeros(len(_DEPTHS))
        if self._fresh:
            ranked, memories = _encoded_afresh(model, query, candidates, questions, known, self._num_selected)
            fresh_hits = _hits(ranked, known)
            read.append(memories)
        costs = []
        for memories in read:
            given = [memory.to(model.backbone.device) for memory in memories]
            likelihood, tokens = model.answer_log_likelihood(
                [q.question for q in questions], given, [q.answers[0] for q in questions]
            )
            costs.append(-float(likelihood.sum()))
        answer, right_cost, wrong_cost, fresh_answer = [*costs, *[0.0] * (4 - len(costs))]
        return np.array(
            [
                *hits,
                *fresh_hits,
                exact,
                sum(self._share_trained(rows[:5], candidates) for rows in found),
                answer,
                fresh_answer,
                right_cost,
                wrong_cost,
                float(tokens.sum()),
                len(questions),
            ]
        )

    def _share_trained(self, rows: Sequence[int], candidates: Candidates) -> float:
        if self._trained and not self._targets:
            self._targets = {r for q in self._trained for r in QuestionRows.of(q, candidates.store).positive}
        return len(self._targets.intersection(rows)) / max(1, len(rows))

    def _exact_matches(
        self, model: ClaraModel, candidates: Candidates, questions: list[Question], found: list[list[int]]
    ) -> float:
        """Number of generated answers that match exactly. No collective calls."""
        memories = [candidates.stored(rows[: self._num_selected]).to(model.backbone.device) for rows in found]
        answers = model.generate(
            [q.question for q in questions], memories, max_new_tokens=self._answer_tokens, together=True
        )
        return sum(exact_match(answer, q.answers) for answer, q in zip(answers, questions, strict=True))

    def _found(
        self, query: Floats, candidates: Candidates, questions: Sequence[Question], known: Sequence[QuestionRows]
    ) -> list[list[int]]:
        """Rows of each question, best first."""
        if self._published_pool:
            pools = [np.unique(np.array(k.pool, np.int64)) for k in known]
            return [
                _ranked(vector, question, pool, candidates.stored(pool.tolist()).numpy(), candidates)
                for vector, question, pool in zip(query, questions, pools, strict=True)
            ]
        ranker = candidates.ranker
        if ranker is None:
            return [[] for _ in known]
        queries = Queries([q.question for q in questions], [k.excluded for k in known], torch.from_numpy(query))
        return ranker.rank(queries, max(*_DEPTHS, self._num_selected))


def _encoded_afresh(
    model: ClaraModel,
    query: Floats,
    candidates: Candidates,
    questions: Sequence[Question],
    known: Sequence[QuestionRows],
    num_selected: int,
) -> tuple[list[list[int]], list[Tensor]]:
    """Rank published pools with the current compressor: rows of each question, best first, memory of the K best."""
    ranked, memories = [], []
    for vector, question, k in zip(query, questions, known, strict=True):
        pool = np.unique(np.array(k.pool, np.int64))
        # Every rank makes the same collective calls, so that a pool without any row makes a pass too.
        memory = model.compress(candidates.token_ids(pool.tolist(), model) or [[]])[: len(pool)].float().cpu()
        order = _ranked(vector, question, pool, memory.numpy(), candidates)
        ranked.append(order)
        memories.append(memory[torch.from_numpy(np.searchsorted(pool, order[:num_selected]))])
    return ranked, memories


def _ranked(
    query: Floats, question: Question, rows: NDArray[np.int64], memory: Floats, candidates: Candidates
) -> list[int]:
    """The best rows for a query, best first, down to the largest depth."""
    score = candidates.score
    unit = unit_rows(memory, score, candidates.store.mean if score.centred else None)
    scores = candidates.fused(unit @ unit_rows(query[None], score)[0], question, rows.tolist())
    found: list[int] = rows[best(scores, rows, max(_DEPTHS))].tolist()
    return found


def _hits(found: Sequence[Sequence[int]], known: Sequence[QuestionRows]) -> NDArray[np.float64]:
    """Number of questions with a positive among the first rows, for each depth."""
    return np.array(
        [[bool({*row[:d]} & {*k.positive}) for d in _DEPTHS] for row, k in zip(found, known, strict=True)], float
    ).sum(axis=0)


def _other(row_ids: np.ndarray[tuple[int], np.dtype[np.int64]], row: int) -> int:
    """Another row, half of the ids away: as good as random, and the same each time."""
    position = (int(np.searchsorted(row_ids, row)) + len(row_ids) // 2 + 1) % len(row_ids)
    return int(row_ids[position])
