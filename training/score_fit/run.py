"""The fit as a whole: open what ranks, compute all features, fit, and write the CHECKPOINT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clara.config.model import FeatureName, Fusion
from clara.config.tree import Config
from clara.data.questions import Question, read_questions
from clara.data.utilities import Scored, read_utilities
from clara.errors import InputError
from clara.index.model_folder import folder_hash
from clara.model.artefact import Checkpoint
from clara.model.question_mean import copy_with_score
from clara.retrieval.pools import TEXT_RANKERS, QuestionRows, SourceInputs
from clara.retrieval.ranker import Queries, Ranker
from clara.retrieval.retriever import Retriever
from training.score_fit.features import all_features
from training.score_fit.fit import Fit, fit
from training.score_fit.targets import target_mass


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Attributes:
        fusion: the fitted weights.
        scales: standard deviation of each feature over all questions and rows; of the memory that of cosine/τ.
        before: mean cross-entropy with the CHECKPOINT's own weights, in nats a question.
        after: the same with the fitted ones.
        questions: that were fitted to.
        without_help: share of the scored questions that no row helps, and that are left out.
    """

    fusion: Fusion
    scales: Mapping[FeatureName, float]
    before: float
    after: float
    questions: int
    without_help: float


def open_rankers(retriever: Retriever, names: Sequence[FeatureName]) -> dict[FeatureName, Ranker]:
    """The rankers of features by name.

    Raises:
        InputError: a source cannot be opened from what there is.
    """
    index = None if retriever.index is None else retriever.index.artefact
    dense_model, device = retriever.settings.dense_model, str(retriever.model.backbone.device)
    inputs = SourceInputs(retriever.store, index, dense_model, device)
    return {name: retriever.memory_ranker if name == "memory" else TEXT_RANKERS[name](inputs) for name in names}


def fit_weights(
    retriever: Retriever,
    rankers: Mapping[FeatureName, Ranker],
    asked: Sequence[tuple[Question, Scored]],
    temperature: float,
    scratch: Path,
) -> Fitted:
    """Fit the weights of these rankers to utilities.

    Args:
        retriever: encodes the questions; its own weights are where the fit begins.
        rankers: of the features.
        asked: questions with their utilities.
        temperature: τ_u, nats.
        scratch: folder for the features.

    Raises:
        InputError: no question has a row that helps; see `fit`.
    """
    store, fusion = retriever.store, retriever.model.settings.fusion
    masses = [target_mass(scored, store.row_ids, temperature) for _, scored in asked]
    chosen = [question for (question, _), mass in zip(asked, masses, strict=True) if mass is not None]
    if not chosen:
        raise InputError(
            f"utilities of {len(asked)} questions: no row that was read helps any of them, so there is nothing to fit "
            "to; score more candidates, or train the reader first"
        )
    texts = [question.question for question in chosen]
    excluded = [QuestionRows.of(question, store).excluded for question in chosen]
    queries = Queries(texts, [()] * len(texts), retriever.queries(texts) if "memory" in rankers else None)
    features = all_features(rankers, queries, store.row_ids, scratch / "features.npy")
    for number, name in enumerate(rankers):
        if name == "memory":
            features[..., number] /= fusion.temperature
    allowed = np.array([~np.isin(store.row_ids, list(rows)) for rows in excluded])
    # A fit that begins at 0 for a source would begin at a bound.
    start = [fusion.weights.get(name, 0.0) for name in rankers]
    found: Fit = fit(features, np.array([mass for mass in masses if mass is not None]), allowed, start)
    weights = {name: round(float(w), 6) for name, w in zip(rankers, found.weights, strict=True)}
    dense_model = folder_hash(retriever.settings.dense_model) if weights.get("dense") else ""
    return Fitted(
        Fusion(weights=weights, temperature=fusion.temperature, dense_model=dense_model),
        dict(zip(rankers, found.scales.tolist(), strict=True)),
        found.before,
        found.after,
        len(chosen),
        1 - len(chosen) / len(asked),
    )


def fit_checkpoint(config: Config, names: Sequence[FeatureName], recipe: Mapping[str, Any], scratch: Path) -> Fitted:
    """Fit, and write the CHECKPOINT.

    Raises:
        InputError: artefacts that do not belong together, a question without utilities; see `fit_weights`.
    """
    retriever = Retriever.open(
        config.checkpoint,
        config.memory,
        config.index or None,
        backbone=config.backbone.path,
        device=config.device,
        retrieval=config.retrieval,
    )
    scored, rankers = read_utilities(config.utilities), open_rankers(retriever, names)
    asked = [(q, scored[q.question_id]) for q in read_questions(config.questions) if q.question_id in scored]
    fitted = fit_weights(retriever, rankers, asked, config.joint.utility_temperature, scratch)
    checkpoint = Checkpoint.open(config.checkpoint, verify=True)
    copy_with_score(
        checkpoint, config.output, checkpoint.settings.score, None, fusion=fitted.fusion, recipe=dict(recipe)
    )
    return fitted
