"""Stage `joint` for the loop: pools drawn from the MEMORY version in use, batches, refreshes beside training.

Shapes: B questions, N candidates, M memory tokens, D hidden size.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.config.tree import Config
from clara.data.questions import Question
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.model.checkpoint import prepare_to_store_backbone
from clara.model.model import ClaraModel
from clara.model.steps import JointBatch, JointStep
from clara.retrieval.pools import QuestionRows
from clara.retrieval.ranker import NO_ROW
from training.loop.engine import Engine
from training.loop.loop import Stage, sample, shard
from training.refresh.canary import Canary
from training.refresh.cost import Devices, Spent
from training.refresh.versions import Versions
from training.refresh.working_set import Coming
from training.stages.candidates import Candidates, generator
from training.stages.held_out import HeldOut
from training.stages.pool_memory import PoolMemory

_QUERIES_AT_ONCE = 16
# Places of random numbers that belong to no pool.
_RIGHT_MEMORY_PLACE = 30_000


def trained_roles(config: Config) -> list[str]:
    """The adapters that this stage trains.

    Raises:
        InputError: none.
    """
    joint = config.joint
    chosen = {
        QUERY_REASONER: joint.train_query_reasoner,
        GENERATOR: joint.train_generator,
        COMPRESSOR: joint.train_compressor,
    }
    roles = [role for role, trained in chosen.items() if trained]
    if not roles:
        raise InputError(
            "joint.train_query_reasoner, train_generator and train_compressor are all false: nothing is trained; set one of them"
        )
    return roles


def shuffled_answers(questions: list[Question], seed: int) -> list[Question]:
    """The control: every question with another one's answers."""
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)).tolist()
    # A rotation along a random order: nobody keeps their own.
    successor = {place: order[(i + 1) % len(order)] for i, place in enumerate(order)}
    return [dataclasses.replace(q, answers=questions[successor[i]].answers) for i, q in enumerate(questions)]


class JointStage(Stage):
    """Retrieval and generation by the answer's loss, over pools from MEMORY."""

    def __init__(
        self,
        model: ClaraModel,
        questions: list[Question],
        config: Config,
        versions: Versions,
        *,
        held_out: HeldOut | None = None,
        canary: Canary | None = None,
        store_backbone: bool = False,
    ) -> None:
        """Freeze what does not train.

        Args:
            model: its query reasoner, generator and compressor train as configured.
            questions: of the training split.
            config: the root; sections `joint` and `retrieval`.
            versions: MEMORY and INDEX.
            held_out: questions to evaluate on; None: none.
            canary: what staleness is measured with; None: it is not.
            store_backbone: snapshots hold the LM too.
        """
        settings = config.joint
        self.name, self.steps, self.optimiser = "joint", settings.steps, settings.optimiser
        self.module: nn.Module = JointStep(model, settings)
        model.train_only(trained_roles(config))
        self.versions = versions
        self._model, self._config, self._settings = model, config, settings
        self._questions = shuffled_answers(questions, config.seed) if settings.shuffle_answers else questions
        self._held_out, self._canary, self._store_backbone = held_out, canary, store_backbone
        store, index = versions.open()
        # Pools that were scored beforehand are not drawn: nothing is searched by words, so that no BM25 is built.
        drawing = settings.model_copy(update={"from_bm25": 0}) if config.utilities else settings
        self.candidates = Candidates(
            drawing, first_level=config.retrieval.first_level, seed=config.seed, store=store, index=index
        )
        self._known: dict[int, QuestionRows] = {}
        self.pool_memory = PoolMemory(model, self.candidates, versions, settings)
        self._search_seconds, self._broken = 0.0, False
        self._used_version = self._staleness_steps = 0
        self._used_recall: dict[str, float] = {}
        self._memory_lag_steps = self._pool_lag_steps = 0.0
        self._refreshing = False
        self._spent = Spent()
        self._step_began = 0.0
        self._devices = Devices.of(config, torch.get_num_threads())
        self._engine: Engine | None = None

    # --- what the loop asks ------------------------------------------------------------------------------------------

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Each role with its own rate."""
        rates: Mapping[str, float] = {str(role): rate for role, rate in self._settings.learning_rates.items()}
        roles = trained_roles(self._config)
        return [(rates.get(role, self.optimiser.learning_rate), self._model.role_parameters(role)) for role in roles]

    def rate_factors(self, step: int) -> list[float]:
        """See the base class. The compressor stands still after its share of the updates."""
        factors = super().rate_factors(step)
        stands = step >= self._settings.compressor_updates
        return [
            0.0 if role == COMPRESSOR and stands else f
            for role, f in zip(trained_roles(self._config), factors, strict=True)
        ]

    def rows(self, step: int) -> int:
        """See the base class."""
        return self._settings.questions_per_step

    def begin(self, engine: Engine) -> None:
        """Learn who shares the work.

        Raises:
            InputError: there is less to evaluate on than ranks.
        """
        self._engine = engine
        if self._held_out is not None:
            self._held_out.check(engine.world)
        if engine.rank == 0 and self._store_backbone and self._settings.refresh.policy != "none":
            prepare_to_store_backbone()
        self.versions.begin(engine.rank)

    def micro_batches(self, step: int, rank: int, world: int) -> list[JointBatch]:
        """See the base class. Pools are drawn from the MEMORY version in use, which is the same on every rank."""
        began = time.monotonic()
        self._step_began = began
        self._used_version, self._used_recall = self.versions.current.number, self.versions.recall
        self.pool_memory.rerank_seconds = 0.0
        self._staleness_steps, self._refreshing = self.versions.staleness(step), self.versions.pending is not None
        chosen = sample(self._config.seed, step, self.rows(step), len(self._questions))
        parts = shard(range(len(chosen)), rank, world, self._settings.micro_batch)
        places = [place for part in parts for place in part]
        pools = self._pools(step, chosen, places)
        self._search_seconds = time.monotonic() - began
        self._memory_lag_steps = self.versions.ages.mean(step)
        self._pool_lag_steps = float(np.mean(self.versions.ages.lag([row for pool in pools for row in pool], step)))
        by_place = dict(zip(places, pools, strict=True))
        return [self._batch(step, part, [chosen[p] for p in part], [by_place[p] for p in part]) for part in parts]

    def broken(self) -> bool:
        """See the base class."""
        return self._broken

    def announcement(self, step: int) -> float:
        """See the base class."""
        return self.versions.announcement(step)

    def before_step(self, step: int, announced: float) -> None:
        """Switch, where every rank was told so: this step's batches are drawn, so the new version begins with the next."""
        if self.versions.switch(step, announced):
            self._open()

    def after_step(self, step: int, engine: Engine) -> dict[str, float]:
        """See the base class."""
        every = self._settings.refresh.canary_every
        staleness: dict[str, float] = {}
        if self._canary is not None and (step + 1) % every == 0:
            # Of the version that the next step uses, as a switch in this step has taken place.
            staleness = self._canary.measure(self._model, self._store, engine)
        self._refresh(step + 1, staleness.get("canary_cosine", 1.0))
        self.versions.prune(step + 1)
        every = self._settings.evaluate_every
        held_out: dict[str, float] = {}
        if self._held_out is not None and every and (step + 1) % every == 0:
            held_out = self._held_out.evaluate(self._model, self.candidates, engine)
        now, tries = time.monotonic(), self.versions.tries
        refreshing = self.versions.refreshed.get("refresh_seconds", 0.0) + tries.lost_seconds
        self._spent.add(now - self._step_began, self.versions.blocked_seconds, refreshing)
        figures = {
            "used_memory_version": float(self._used_version),
            **self._used_recall,
            "staleness_steps": float(self._staleness_steps),
            "memory_lag_steps": self._memory_lag_steps,
            "pool_lag_steps": self._pool_lag_steps,
            "search_seconds": self._search_seconds,
            "rerank_seconds": self.pool_memory.rerank_seconds,
            "blocked_seconds": self.versions.blocked_seconds,
            "refreshing": float(self._refreshing),
            **staleness,
            **self.versions.refreshed,
            **({"refresh_lost_seconds": tries.lost_seconds} if tries.lost_seconds else {}),
            **self._spent.figures(self._devices),
            **held_out,
        }
        self.versions.blocked_seconds, self.versions.refreshed, tries.lost_seconds = 0.0, {}, 0.0
        return figures

    def state(self) -> dict[str, Any]:
        """See the base class."""
        return {"versions": self.versions.state(), "spent": self._spent.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        self.versions.restore(state["versions"])
        self._open()
        self.versions.blocked_seconds = 0.0  # opening what the run begins with is no waiting
        self._spent = Spent(**state["spent"])

    # --- refreshes ---------------------------------------------------------------------------------------------------

    def _refresh(self, updates: int, cosine: float = 1.0) -> None:
        """Take the snapshot that is due after that many updates; under switch = `stop` wait for its version, and take it."""
        engine, before = self._begun(), self.versions.pending
        self.versions.after_update(
            updates, self._model, engine, store_backbone=self._store_backbone, cosine=cosine, coming=self._coming
        )
        if self._settings.refresh.switch == "stop" and self.versions.pending is not before:
            (announced,) = engine.sum([self.versions.stop_for()])
            if self.versions.switch(updates - 1, announced):
                self._open()

    def _coming(self, updates: int) -> Coming:
        """Candidates of the questions of coming steps, as far as they are known without a search, and questions to search for."""
        settings = self._settings
        steps = range(updates, min(updates + settings.refresh.look_ahead_steps, self.steps))
        asked = [q for step in steps for q in sample(self._config.seed, step, self.rows(step), len(self._questions))]
        known = [self._known_rows(q) for q in asked]
        rows = [
            row
            for k in known
            for row in (k.pool if settings.published_pool else k.positive if settings.inject_positives else ())
        ]
        searching = self.candidates.index is not None and settings.from_index and not settings.published_pool
        return Coming(rows, [self._questions[q].question for q in dict.fromkeys(asked)] if searching else [])

    # --- batches -----------------------------------------------------------------------------------------------------

    def _begun(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the stage has not begun")
        return self._engine

    def _open(self) -> None:
        began = time.monotonic()
        self.candidates.use(*self.versions.open())
        self.versions.blocked_seconds += time.monotonic() - began

    @property
    def _store(self) -> MemoryStore:
        return self.candidates.store

    def _known_rows(self, question: int) -> QuestionRows:
        # Rows are the same in every version.
        if question not in self._known:
            self._known[question] = QuestionRows.of(self._questions[question], self._store)
        return self._known[question]

    def _pools(self, step: int, chosen: list[int], places: list[int]) -> list[list[int]]:
        """Rows for the questions at these places of a step."""
        of_step = self._exchange(self._own_candidates([chosen[p] for p in places]))
        if self._settings.refresh.policy == "incremental":
            self.versions.working_set.saw(of_step)
        return self.candidates.pools(of_step, places, [self._known_rows(chosen[p]) for p in places], step)

    def _own_candidates(self, questions: list[int]) -> list[list[int]]:
        chosen = [self._questions[q] for q in questions]
        searching = (
            self.candidates.index is not None and self._settings.from_index and not self._settings.published_pool
        )
        query_BMD = encode_questions(self._model, chosen) if searching else None
        self._broken = query_BMD is not None and not bool(torch.isfinite(query_BMD).all())
        if self._broken:  # they find nothing, and no rank uses the batches of this step
            return [self._store.row_ids[: self._settings.num_candidates].tolist()] * len(questions)
        return self.candidates.own(chosen, [self._known_rows(q) for q in questions], query_BMD)

    def _exchange(self, own: list[list[int]]) -> list[list[int]]:
        """Own candidates of all questions of the step, in order of their places: rank r holds places r, r + world, …"""
        size = self._settings.num_candidates
        rows = torch.full((len(own), size), NO_ROW, dtype=torch.int64)
        for row, candidates in enumerate(own):
            rows[row, : len(candidates)] = torch.tensor(candidates, dtype=torch.int64)
        gathered = self._begun().gather(rows)
        in_order = gathered.transpose(0, 1).reshape(-1, size)
        return [[r for r in row if r != NO_ROW] for row in in_order.tolist()]

    def _batch(self, step: int, places: list[int], questions: list[int], pools: list[list[int]]) -> JointBatch:
        device = self._model.backbone.device
        chosen, known = [self._questions[q] for q in questions], [self._known_rows(q) for q in questions]
        right = [self._right_row(step, p, k) for p, k in zip(places, known, strict=True)]
        memory_BNMD, valid_BN, right_memory = self.pool_memory.of(step, pools, right)
        positive_BN = torch.zeros_like(valid_BN)
        for row, (pool, k) in enumerate(zip(pools, known, strict=True)):
            positive_BN[row, : len(pool)] = torch.tensor([r in k.positive for r in pool], dtype=torch.bool)
        trains = step < self._settings.compressor_updates
        texts = [self.candidates.token_ids(pool, self._model) for pool in pools] if trains else []
        return JointBatch(
            questions=[self._model.question_ids(q.question) for q in chosen],
            prompts=[self._model.prompts.question(q.question, q.answers[0]) for q in chosen],
            memory=memory_BNMD.to(device),
            valid=valid_BN.to(device),
            positive=positive_BN.to(device),
            candidates=texts,
            compressor_stands=not trains,
            right_memory=right_memory,
        )

    def _right_row(self, step: int, place: int, known: QuestionRows) -> int | None:
        """A known positive's row for the configured share of questions."""
        if not self._settings.right_memory_share or not known.positive:
            return None
        dice = generator(self._config.seed, step, place + _RIGHT_MEMORY_PLACE)
        if float(torch.rand((), generator=dice)) >= self._settings.right_memory_share:
            return None
        return known.positive[int(torch.randint(len(known.positive), (), generator=dice))]


@torch.no_grad()
def encode_questions(model: ClaraModel, questions: list[Question]) -> Tensor:
    """Query vectors `[B, M, D]` of the query reasoner as it is now."""
    parts = [
        model.encode_questions([q.question for q in questions[i : i + _QUERIES_AT_ONCE]])
        for i in range(0, len(questions), _QUERIES_AT_ONCE)
    ]
    return torch.cat(parts)
