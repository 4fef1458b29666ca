"""Stage `joint` for the loop: pools drawn from the MEMORY version in use, batches, refreshes beside training.

What a step computes is `clara.model.steps.JointStep`. Here is what surrounds it: `QuestionPools` and `Candidates` draw
the rows of each question, `Batches` makes tensors of them, `Versions` re-encodes MEMORY and switches.

Shapes: B questions, N candidates, M memory tokens, D hidden size.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from clara.arrays import Floats, Ids
from clara.config.model import SOURCE_SETTINGS, Fusion
from clara.config.roles import COMPRESSOR
from clara.config.tree import Config
from clara.data.questions import Question, shuffled_answers
from clara.data.utilities import Scored
from clara.memory.store import MemoryStore
from clara.model.checkpoint import prepare_to_store_backbone
from clara.model.joint_batch import JointBatch
from clara.model.model import ClaraModel
from clara.model.steps import JointStep
from clara.retrieval.long_questions import warn_of_cuts
from clara.retrieval.pools import TEXT_RANKERS
from training.loop.engine import Engine
from training.loop.loop import Stage
from training.loop.shares import shard
from training.refresh.canary import Canary
from training.refresh.cost import Devices, Spent
from training.refresh.versions import Versions
from training.score_fit.fold import FoldFit
from training.stages.batches import Batches
from training.stages.candidates import Candidates
from training.stages.denominator import Denominator, rows_that_count
from training.stages.held_out import HeldOut
from training.stages.joint_checks import check_score, trained_roles
from training.stages.pool_memory import PoolMemory
from training.stages.question_pools import QuestionPools
from training.stages.standard_rag import check_reads, set_reads


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
        fold: FoldFit | None = None,
        store_backbone: bool = False,
        scored: Iterable[Scored] = (),
    ) -> None:
        """Freeze the parameters that do not train.

        Args:
            model: its query reasoner, generator and compressor train as configured.
            questions: the training split.
            config: the root; sections `joint` and `retrieval`.
            versions: MEMORY and INDEX.
            held_out: questions to evaluate on; None: none.
            canary: measures staleness; None: it is not measured.
            fold: fits the fused score after each switch and after the last step; None: it stays as it is.
            store_backbone: snapshots hold the LM too.
            scored: utilities of the questions, if they were scored beforehand.
        """
        settings = config.joint
        self.name, self.steps, self.optimiser = "joint", settings.steps, settings.optimiser
        self.module: nn.Module = JointStep(model, settings)
        check_score(model.settings, settings)
        check_reads(model.settings, config)
        set_reads(model, config)
        warn_of_cuts(model, [question.question for question in questions])
        fusion = model.settings.fusion
        model.train_only(trained_roles(config))
        self.versions = versions
        self._model, self._config, self._settings = model, config, settings
        self._held_out, self._canary, self._store_backbone = held_out, canary, store_backbone
        self._fold, self._fit_due = fold, False
        store, index = versions.open()
        # Pools that were scored beforehand are not drawn, so that no source needs to be opened.
        none = {SOURCE_SETTINGS[name]: 0 for name in TEXT_RANKERS}
        self.candidates = Candidates(
            settings.model_copy(update=none) if config.utilities else settings,
            config.retrieval,
            seed=config.seed,
            store=store,
            index=index,
            device=str(model.backbone.device),
            score=model.settings.score,
            fusion=fusion,
        )
        if settings.shuffle_answers:
            order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(config.seed)).tolist()
            questions = shuffled_answers(questions, order)
        self.pools = QuestionPools(model, questions, settings, config.seed, self.candidates)
        self.pool_memory = PoolMemory(model, self.candidates, versions, settings)
        known = (self.pools.known_rows(question) for question in range(len(questions)))
        counted = rows_that_count(settings, store.row_ids, known, scored)
        self._denominator = Denominator(self.candidates, settings, config.seed, *counted)
        self._batches = Batches(model, settings, self.candidates, self.pools, self.pool_memory, self._denominator)
        self._unread: tuple[Ids, Floats] | None = None
        # Figures of the step under way, set when its batches are drawn.
        self._figures: dict[str, float] = {}
        self._spent = Spent()
        self._step_began = 0.0
        self._devices = Devices.of(config, torch.get_num_threads())
        self._engine: Engine | None = None

    # --- called by the loop ------------------------------------------------------------------------------------------

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Parameters of each trained role with its learning rate."""
        rates: Mapping[str, float] = {str(role): rate for role, rate in self._settings.learning_rates.items()}
        roles = trained_roles(self._config)
        return [(rates.get(role, self.optimiser.learning_rate), self._model.role_parameters(role)) for role in roles]

    def rate_factors(self, step: int) -> list[float]:
        """See the base class. The compressor's rate is 0 after its share of the updates."""
        factors = super().rate_factors(step)
        frozen = step >= self._settings.compressor_updates
        return [
            0.0 if role == COMPRESSOR and frozen else f
            for role, f in zip(trained_roles(self._config), factors, strict=True)
        ]

    def rows(self, step: int) -> int:
        """See the base class."""
        return self._settings.questions_per_step

    def begin(self, engine: Engine) -> None:
        """Check that the stage can run on these ranks.

        Raises:
            InputError: fewer held-out questions than ranks.
        """
        self._engine = engine
        if self._held_out is not None:
            self._held_out.check(engine.world)
        if engine.rank == 0 and self._store_backbone and self.versions.policy.makes_versions:
            prepare_to_store_backbone()
        self.versions.begin(engine.rank)

    def micro_batches(self, step: int, rank: int, world: int) -> list[JointBatch]:
        """See the base class. Pools are drawn from the MEMORY version in use, which is the same on every rank."""
        self._step_began = time.monotonic()
        self.pool_memory.rerank_seconds = 0.0
        versions, chosen = self.versions, self.pools.of_step(step)
        parts = shard(range(len(chosen)), rank, world, self._settings.micro_batch)
        positions = [position for part in parts for position in part]
        self._figures = {
            "used_memory_version": float(versions.current.number),
            **versions.recall,
            "staleness_steps": float(versions.staleness(step)),
            "refreshing": float(versions.pending is not None),
        }
        pools, of_step = self._pools(step, chosen, positions)
        self._unread = self._denominator.of_step(step, (row for pool in of_step for row in pool))
        self._figures |= {
            "search_seconds": time.monotonic() - self._step_began,
            "memory_lag_steps": versions.ages.mean(step),
            "pool_lag_steps": float(np.mean(versions.ages.lag([row for pool in pools for row in pool], step))),
        }
        pool_of = dict(zip(positions, pools, strict=True))
        return [self._batch(step, part, [chosen[p] for p in part], [pool_of[p] for p in part]) for part in parts]

    def broken(self) -> bool:
        """See the base class."""
        return self.pools.broken

    def announcement(self, step: int) -> float:
        """See the base class."""
        return self.versions.announcement(step)

    def before_step(self, step: int, announced: float) -> None:
        """Switch if that was announced. This step's batches are drawn, so the new version begins with the next."""
        if self.versions.switch(step, announced):
            self._open()
            self._fit_due = True

    def after_step(self, step: int, engine: Engine) -> dict[str, float]:
        """See the base class."""
        settings = self._settings
        staleness: dict[str, float] = {}
        if self._canary is not None and (step + 1) % settings.refresh.canary_every == 0:
            # Measures the version that the next step uses: a switch in this step has taken place.
            staleness = self._canary.measure(self._model, self._store, engine)
        self._refresh(step + 1, staleness.get("canary_cosine", 1.0))
        self.versions.prune(step + 1)
        fitted = self._fitted(engine) if self._fit_due or step + 1 == self.steps else {}
        held_out: dict[str, float] = {}
        if self._held_out is not None and settings.evaluate_every and (step + 1) % settings.evaluate_every == 0:
            held_out = self._held_out.evaluate(self._model, self.candidates, engine)
        return self._figures | staleness | self._cost_figures() | fitted | held_out

    def _cost_figures(self) -> dict[str, float]:
        """Seconds of the step and of its refreshes, which are counted from zero again."""
        versions, attempts = self.versions, self.versions.attempts
        refreshing = versions.refreshed.get("refresh_seconds", 0.0) + attempts.lost_seconds
        self._spent.add(time.monotonic() - self._step_began, versions.blocked_seconds, refreshing)
        figures = {
            "rerank_seconds": self.pool_memory.rerank_seconds,
            "blocked_seconds": versions.blocked_seconds,
            **versions.refreshed,
            **({"refresh_lost_seconds": attempts.lost_seconds} if attempts.lost_seconds else {}),
            **self._spent.figures(self._devices),
        }
        versions.blocked_seconds, versions.refreshed, attempts.lost_seconds = 0.0, {}, 0.0
        return figures

    def state(self) -> dict[str, Any]:
        """See the base class."""
        fusion = self._model.settings.fusion.model_dump()
        return {"versions": self.versions.state(), "spent": self._spent.state(), "fusion": fusion}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        self.versions.restore(state["versions"])
        self._open()
        self._rank_by(Fusion(**state["fusion"]))
        self.versions.blocked_seconds = 0.0  # the first opening does not count as waiting
        self._spent = Spent(**state["spent"])

    # --- refreshes ---------------------------------------------------------------------------------------------------

    def _refresh(self, updates: int, cosine: float) -> None:
        """Start the refresh that is due after that many updates; if `switch` is `stop`, also wait for its version."""
        engine, before = self._begun(), self.versions.pending
        self.versions.after_update(
            updates,
            self._model,
            engine,
            store_backbone=self._store_backbone,
            cosine=cosine,
            upcoming=self.pools.upcoming,
        )
        if self._settings.refresh.switch == "stop" and self.versions.pending is not before:
            (announced,) = engine.sum([self.versions.announcement_after_stop()])
            if self.versions.switch(updates - 1, announced):
                self._open()
                self._fit_due = True

    # --- the fused score ---------------------------------------------------------------------------------------------

    def _fitted(self, engine: Engine) -> dict[str, float]:
        """Fit the fused score to the fold with the present model and MEMORY; figures (collectives)."""
        self._fit_due = False
        if self._fold is None:
            return {}
        candidates = self.candidates
        fusion, figures = self._fold.fit(self._model, candidates.store, candidates.index, candidates.inputs, engine)
        self._rank_by(fusion)
        return figures

    def _rank_by(self, fusion: Fusion) -> None:
        """Use this score in the step, in the search and in the CHECKPOINT."""
        self._model.settings = self._model.settings.model_copy(update={"fusion": fusion})
        self.candidates.rank_by(fusion)

    # --- batches -----------------------------------------------------------------------------------------------------

    def _begun(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("begin() has not been called")
        return self._engine

    def _open(self) -> None:
        began = time.monotonic()
        self.candidates.use(*self.versions.open())
        self.versions.blocked_seconds += time.monotonic() - began

    @property
    def _store(self) -> MemoryStore:
        return self.candidates.store

    def _pools(
        self, step: int, chosen: list[int], positions: list[int]
    ) -> tuple[list[list[int]], Sequence[Sequence[int]]]:
        """Pools of the questions at these positions of a step, and the candidates of all its questions (a collective).

        A question's own candidates come from its searches; a pool is filled up with those of the other questions.
        """
        questions = [chosen[p] for p in positions]
        of_step = self.pools.candidates_of_step(questions, self._begun())
        if self.versions.policy.mixes_versions:
            self.versions.working_set.saw(of_step)
        known = [self.pools.known_rows(question) for question in questions]
        return self.candidates.pools(of_step, positions, known, step), of_step

    def _batch(self, step: int, positions: list[int], questions: list[int], pools: list[list[int]]) -> JointBatch:
        return self._batches.of(step, positions, questions, pools, self._unread)
