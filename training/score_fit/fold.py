"""The fit of a joint run: the fused score is fitted to utilities of the questions that the run keeps from training.

Shapes: Q questions of the fold, P rows of a pool, M memory tokens, D hidden size.
"""

import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clara.arrays import NO_ROW
from clara.config.model import FeatureName, Fusion
from clara.config.stages import Joint
from clara.config.tree import Config
from clara.data.questions import Question
from clara.data.utilities import Scored
from clara.index.search import TwoLevels
from clara.memory.store import MemoryStore
from clara.model.model import ClaraModel
from clara.retrieval.pools import Source, SourceInputs, source_counts
from clara.retrieval.ranker import Ranker
from clara.retrieval.retriever import Retriever
from clara.retrieval.utilities import draw_pools, score_pool
from training.loop.engine import Collectives
from training.score_fit.run import NothingToFitError, fit_weights, fusion_of, open_rankers

logger = logging.getLogger(__name__)


def fitted_features(settings: Joint) -> list[FeatureName]:
    """The features that get a weight: the sources that candidates come from."""
    return [name for name, count in source_counts(settings).items() if count]


class FoldFit:
    """Fits the fused score to a fold of questions, with the model and the MEMORY of a moment."""

    def __init__(self, questions: Sequence[Question], config: Config, scratch: Path) -> None:
        """Fit to the questions of a fold.

        Args:
            questions: Q of them, the same on every rank; none of their targets is trained on.
            config: the root; sections `joint` and `retrieval`.
            scratch: folder for the features of all rows, on rank 0.
        """
        self._questions, self._scratch = list(questions), scratch
        self._settings, self._retrieval, self._seed = config.joint, config.retrieval, config.seed
        self._names = fitted_features(config.joint)

    def fit(
        self, model: ClaraModel, store: MemoryStore, index: TwoLevels | None, inputs: SourceInputs, engine: Collectives
    ) -> tuple[Fusion, dict[str, float]]:
        """Draw and read pools, each rank its share, fit on rank 0, and give its weights to every rank (collectives).

        Where there is nothing to fit to, the weights stay as they are, and rank 0 logs a warning.

        Args:
            model: the reader and its weights, where the fit begins.
            store: MEMORY.
            index: INDEX over it.
            inputs: what text rankers are opened from.
            engine: of this rank.

        Returns:
            The fused score, the same on every rank, and figures: `fit_weight_NAME`, `fit_without_gain` (share of the
            questions that no row helps, and that have no part in the fit), `fit_nats_before` and `fit_nats_after`
            (cross-entropy of a question) and `fit_seconds`.

        Raises:
            InputError: a source cannot be opened, or a feature, a utility or a fitted weight is not finite.
        """
        began = time.monotonic()
        texts: dict[FeatureName, Ranker] = {name: inputs.ranker(name) for name in self._names if name != "memory"}
        retriever = Retriever(model, store, index, texts, retrieval=self._retrieval)
        rankers = open_rankers(retriever, self._names, inputs)
        # Every rank encodes all questions: passes are collectives under ZeRO-3, and their number may not differ.
        vectors_QMD = retriever.queries([q.question for q in self._questions])
        scored = self._scored(retriever, rankers, vectors_QMD, engine)
        found = [0.0] * (len(rankers) + 3)
        if engine.rank == 0:
            found = self._fitted(retriever, rankers, vectors_QMD, scored)
        *weights, without_gain, before, after = engine.sum(found)
        figures = {"fit_without_gain": without_gain, "fit_seconds": time.monotonic() - began}
        fusion = model.settings.fusion
        if not math.isnan(after):
            fusion = fusion_of(retriever, dict(zip(rankers, weights, strict=True)))
            figures |= {"fit_nats_before": before, "fit_nats_after": after}
        logger.info("rank %d: fit: weights of the fused score are %s", engine.rank, fusion.weights)
        if engine.rank == 0 and not fusion.a:
            logger.warning("fit: the memory has the weight 0, so that scores give the query reasoner no gradient")
        return fusion, figures | {f"fit_weight_{name}": fusion.weights.get(name, 0.0) for name in rankers}

    def _fitted(
        self,
        retriever: Retriever,
        rankers: Mapping[FeatureName, Ranker],
        vectors_QMD: Tensor,
        scored: Sequence[Scored],
    ) -> list[float]:
        """Weights, share of questions without help, and nats before and after; these are NaN if nothing was fitted."""
        asked, temperature = list(zip(self._questions, scored, strict=True)), self._settings.utility_temperature
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            try:
                fitted = fit_weights(retriever, rankers, asked, temperature, Path(scratch), vectors_QMD)
            except NothingToFitError as error:
                logger.warning("fit: the weights of the fused score stay as they are: %s", error)
                return [*[0.0] * len(rankers), error.without_help, math.nan, math.nan]
        weights = fitted.fusion.weights
        return [*(weights[name] for name in rankers), fitted.without_help, fitted.before, fitted.after]

    def _scored(
        self, retriever: Retriever, rankers: Mapping[FeatureName, Ranker], vectors_QMD: Tensor, engine: Collectives
    ) -> list[Scored]:
        """Utilities of all questions (collectives); every rank reads as many pools, some of them twice."""
        questions, settings, size = self._questions, self._settings, self._settings.num_candidates
        turns = range(-(-len(questions) // engine.world))
        own = [(turn * engine.world + engine.rank) % len(questions) for turn in turns]
        counts = source_counts(settings)
        sources = [Source(ranker, counts[name]) for name, ranker in rankers.items()]
        pools = draw_pools(
            [questions[number] for number in own],
            vectors_QMD[own],
            sources,
            retriever.store,
            positives=False,
            size=size,
            seed=self._seed,
        )
        rows_QP = torch.full((len(own), size), NO_ROW, dtype=torch.int64)
        nats_QP = torch.zeros(len(own), size + 1)
        for turn, (number, pool) in enumerate(zip(own, pools, strict=True)):
            found = score_pool(retriever, questions[number], pool)
            rows_QP[turn, : len(pool)] = torch.tensor(pool)
            nats_QP[turn, : len(pool) + 1] = torch.tensor([found.without, *found.log_likelihoods])
        # Rank r holds questions r, r + world and so on.
        every_row, every_nats = (
            engine.gather(part).transpose(0, 1).flatten(0, 1).tolist() for part in (rows_QP, nats_QP)
        )
        scored = []
        for question, row, (without, *given) in zip(questions, every_row, every_nats, strict=False):
            present = tuple(number for number in row if number != NO_ROW)
            scored.append(Scored(question.question_id, present, tuple(given[: len(present)]), without))
        return scored
