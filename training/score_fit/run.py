"""The fit as a whole: open what ranks, compute all features, fit, and write the CHECKPOINT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clara.arrays import Ids
from clara.config.model import FeatureName, Fusion
from clara.config.tree import Config
from clara.data.questions import Question, read_questions
from clara.data.utilities import Scored, read_utilities
from clara.errors import InputError
from clara.index.dense_model import model_hash
from clara.model.artefact import Checkpoint
from clara.model.question_mean import copy_with_score
from clara.retrieval.pools import QuestionRows, SourceInputs
from clara.retrieval.ranker import Queries, Ranker
from clara.retrieval.retriever import Retriever
from training.score_fit.features import all_features
from training.score_fit.fit import Fit, fit
from training.score_fit.head import PENALTIES, Problem, compared, scaled_queries
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


class NothingToFitError(InputError):
    """No row that was read helps any question, or no source ranks those that help above the others.

    Attributes:
        without_help: share of the questions that no row helps.
    """

    def __init__(self, message: str, without_help: float) -> None:
        super().__init__(message)
        self.without_help = without_help


def open_rankers(
    retriever: Retriever, names: Sequence[FeatureName], inputs: SourceInputs | None = None
) -> dict[FeatureName, Ranker]:
    """The rankers of features by name.

    Args:
        retriever: the system.
        names: of the features.
        inputs: what text rankers are opened from; None: from the retriever's own.

    Raises:
        InputError: a source cannot be opened from what there is, or the INDEX lacks its part.
    """
    index = None if retriever.index is None else retriever.index.artefact
    inputs = inputs or SourceInputs(retriever.store, index, retriever.settings, str(retriever.model.backbone.device))
    rankers: dict[FeatureName, Ranker] = {}
    for name in names:
        if name != "memory":
            inputs.check_part(name, f"the fused score is fitted with a weight for {name}")
        rankers[name] = retriever.memory_ranker if name == "memory" else inputs.ranker(name)
    return rankers


def fit_weights(
    retriever: Retriever,
    rankers: Mapping[FeatureName, Ranker],
    asked: Sequence[tuple[Question, Scored]],
    temperature: float,
    scratch: Path,
    vectors: Tensor | None = None,
) -> Fitted:
    """Fit the weights of these rankers to utilities.

    Args:
        retriever: encodes the questions; its own weights are where the fit begins.
        rankers: of the features.
        asked: questions with their utilities.
        temperature: τ_u, nats.
        scratch: folder for the features.
        vectors: query vectors of the questions `[Q, M, D]`; None: they are computed if the memory is a feature.

    Raises:
        NothingToFitError: no question has a row that helps, or every weight is 0.
        InputError: see `target_mass` and `fit`.
    """
    store, fusion = retriever.store, retriever.model.settings.fusion
    helped, mass = helped_questions(asked, store.row_ids, temperature)
    without_help = 1 - len(helped) / len(asked)
    if not helped:
        raise NothingToFitError(
            f"utilities of {len(asked)} questions: no row that was read helps any of them, so there is nothing to fit "
            "to; score more candidates, or train the reader first",
            without_help,
        )
    of_helped = None if vectors is None else vectors[helped]
    chosen = [asked[number][0] for number in helped]
    features, allowed = features_and_allowed(retriever, rankers, chosen, scratch, of_helped)
    start = [fusion.weights.get(name, 0.0) for name in rankers]
    found: Fit = fit(features, mass, allowed, start)
    weights = {name: round(weight, 6) for name, weight in zip(rankers, found.weights.tolist(), strict=True)}
    if not any(weights.values()):
        raise NothingToFitError(
            f"utilities of {len(asked)} questions: the best weight of each of {', '.join(rankers)} is 0: no source "
            "ranks rows that help above others; score more questions, or train the reader first",
            without_help,
        )
    return Fitted(
        fusion_of(retriever, weights),
        dict(zip(rankers, found.scales.tolist(), strict=True)),
        found.before,
        found.after,
        len(chosen),
        without_help,
    )


def helped_questions(
    asked: Sequence[tuple[Question, Scored]], row_ids: Ids, temperature: float
) -> tuple[list[int], NDArray[np.float64]]:
    """Numbers of the questions that some row helps, and their target distributions; see `target_mass`."""
    masses = {number: target_mass(scored, row_ids, temperature) for number, (_, scored) in enumerate(asked)}
    helped = {number: mass for number, mass in masses.items() if mass is not None}
    return list(helped), np.array(list(helped.values()))


def compare_head(
    config: Config, names: Sequence[FeatureName], scratch: Path
) -> dict[float, tuple[float, float, float]]:
    """For some penalties, what weights that depend on the query change; see `compared`.

    Raises:
        InputError: see `fit_checkpoint`.
    """
    retriever, scored = open_retriever(config), read_utilities(config.utilities)
    asked = [(q, scored[q.question_id]) for q in read_questions(config.questions) if q.question_id in scored]
    helped, mass = helped_questions(asked, retriever.store.row_ids, config.joint.utility_temperature)
    chosen = [asked[number][0] for number in helped]
    vectors = retriever.queries([question.question for question in chosen])
    rankers = open_rankers(retriever, names)
    features, allowed = features_and_allowed(retriever, rankers, chosen, scratch, vectors)
    targets = [(*question.positive_ids, question.question_id)[0] for question in chosen]
    problem = Problem(features, mass, allowed, scaled_queries(vectors.numpy()), targets)
    return {penalty: compared(problem, penalty) for penalty in PENALTIES}


def features_and_allowed(
    retriever: Retriever,
    rankers: Mapping[FeatureName, Ranker],
    questions: Sequence[Question],
    scratch: Path,
    vectors: Tensor | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features of all rows `[Q, N, F]`, the memory's as cosine/τ, and rows that are not excluded `[Q, N]`.

    `vectors` `[Q, M, D]` are the questions' query vectors; None: they are computed if the memory is a feature.
    """
    store, texts = retriever.store, [question.question for question in questions]
    if vectors is None and "memory" in rankers:
        vectors = retriever.queries(texts)
    queries = Queries(texts, [()] * len(texts), vectors)
    features = all_features(rankers, queries, store.row_ids, scratch / "features.npy")
    for number, name in enumerate(rankers):
        if name == "memory":
            features[..., number] /= retriever.model.settings.fusion.temperature
    excluded = [QuestionRows.of(question, store).excluded for question in questions]
    return features, np.array([~np.isin(store.row_ids, list(rows)) for rows in excluded])


def fusion_of(retriever: Retriever, weights: Mapping[FeatureName, float]) -> Fusion:
    """The fused score with these weights, for the retriever's temperature and embedding model."""
    dense_model = model_hash(retriever.settings) if weights.get("dense") else ""
    temperature = retriever.model.settings.fusion.temperature
    return Fusion(weights=dict(weights), temperature=temperature, dense_model=dense_model)


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
    config: Config,
    names: Sequence[FeatureName],
    questions: Sequence[Question],
    recipe: Mapping[str, Any],
    scratch: Path,
) -> Fusion:
    """Weights from statistics of the scores of unlabelled questions; writes the CHECKPOINT.

    Raises:
        InputError: artefacts that do not belong together, or no source distinguishes rows.
    """
    retriever = open_retriever(config)
    found = features_and_allowed(retriever, open_rankers(retriever, names), questions, scratch)
    weights = {name: round(weight, 6) for name, weight in statistical_weights(names, *found).items()}
    if not any(weights.values()):
        raise InputError(f"{config.memory}: every source gives all rows one score, so that none gets a weight")
    fusion = fusion_of(retriever, weights)
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
