"""The fit as a whole: open what ranks, compute all features, fit, and write the CHECKPOINT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clara.config.model import FeatureName, Fusion
from clara.config.tree import Config
from clara.data.questions import Question, evenly, read_questions
from clara.data.utilities import Scored, read_utilities
from clara.errors import InputError
from clara.index.dense_model import model_hash
from clara.model.artefact import Checkpoint
from clara.model.question_mean import copy_with_score
from clara.retrieval.pools import TEXT_RANKERS, QuestionRows, SourceInputs
from clara.retrieval.ranker import Queries, Ranker
from clara.retrieval.retriever import Retriever
from training.score_fit.features import all_features
from training.score_fit.fit import Fit, fit
from training.score_fit.targets import target_mass
from training.score_fit.unfitted import statistical_weights


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
    inputs = SourceInputs(retriever.store, index, retriever.settings, str(retriever.model.backbone.device))
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
    features, allowed = features_and_allowed(retriever, rankers, chosen, scratch)
    start = [fusion.weights.get(name, 0.0) for name in rankers]
    found: Fit = fit(features, np.array([mass for mass in masses if mass is not None]), allowed, start)
    return Fitted(
        _fusion(retriever, dict(zip(rankers, found.weights.tolist(), strict=True))),
        dict(zip(rankers, found.scales.tolist(), strict=True)),
        found.before,
        found.after,
        len(chosen),
        1 - len(chosen) / len(asked),
    )


def features_and_allowed(
    retriever: Retriever, rankers: Mapping[FeatureName, Ranker], questions: Sequence[Question], scratch: Path
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features of all rows `[Q, N, F]`, the memory's as cosine/τ, and rows that are not excluded `[Q, N]`."""
    store, texts = retriever.store, [question.question for question in questions]
    queries = Queries(texts, [()] * len(texts), retriever.queries(texts) if "memory" in rankers else None)
    features = all_features(rankers, queries, store.row_ids, scratch / "features.npy")
    for number, name in enumerate(rankers):
        if name == "memory":
            features[..., number] /= retriever.model.settings.fusion.temperature
    excluded = [QuestionRows.of(question, store).excluded for question in questions]
    return features, np.array([~np.isin(store.row_ids, list(rows)) for rows in excluded])


def _fusion(retriever: Retriever, weights: Mapping[FeatureName, float]) -> Fusion:
    """The fused score with these weights."""
    dense_model = model_hash(retriever.settings) if weights.get("dense") else ""
    temperature = retriever.model.settings.fusion.temperature
    rounded = {name: round(weight, 6) for name, weight in weights.items()}
    return Fusion(weights=rounded, temperature=temperature, dense_model=dense_model)


def open_retriever(config: Config) -> Retriever:
    """The system whose weights are sought.

    Raises:
        InputError: see `Retriever.open`.
    """
    return Retriever.open(
        config.checkpoint,
        config.memory,
        config.index or None,
        backbone=config.backbone.path,
        device=config.device,
        retrieval=config.retrieval,
    )


def weigh_checkpoint(
    config: Config, names: Sequence[FeatureName], limit: int, recipe: Mapping[str, Any], scratch: Path
) -> Fusion:
    """Weights from statistics of the scores of unlabelled questions; writes the CHECKPOINT.

    Raises:
        InputError: artefacts that do not belong together, or no source distinguishes rows.
    """
    retriever, questions = open_retriever(config), evenly(read_questions(config.questions), limit)
    found = features_and_allowed(retriever, open_rankers(retriever, names), questions, scratch)
    weights = statistical_weights(names, *found)
    if not any(weights.values()):
        raise InputError(f"{config.memory}: every source gives all rows one score, so that none gets a weight")
    fusion = _fusion(retriever, weights)
    _write(config, fusion, recipe)
    return fusion


def _write(config: Config, fusion: Fusion, recipe: Mapping[str, Any]) -> None:
    checkpoint = Checkpoint.open(config.checkpoint, verify=True)
    copy_with_score(checkpoint, config.output, checkpoint.settings.score, None, fusion=fusion, recipe=dict(recipe))


def fit_checkpoint(config: Config, names: Sequence[FeatureName], recipe: Mapping[str, Any], scratch: Path) -> Fitted:
    """Fit, and write the CHECKPOINT.

    Raises:
        InputError: artefacts that do not belong together, a question without utilities; see `fit_weights`.
    """
    retriever = open_retriever(config)
    scored, rankers = read_utilities(config.utilities), open_rankers(retriever, names)
    asked = [(q, scored[q.question_id]) for q in read_questions(config.questions) if q.question_id in scored]
    fitted = fit_weights(retriever, rankers, asked, config.joint.utility_temperature, scratch)
    _write(config, fitted.fusion, recipe)
    return fitted
