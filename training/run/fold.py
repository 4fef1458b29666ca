"""The fold of a joint run: questions that are kept from training, and that the fused score is fitted to."""

import numpy as np

from clara.config.model import SOURCE_SETTINGS, Fusion
from clara.config.tree import Config
from clara.data.questions import Question, check_targets, evenly, fold_of, read_questions, shuffled_answers
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.retrieval.pools import SourceInputs
from clara.storage.artefact import Artefact
from clara.storage.manifest import read_manifest
from training.score_fit.fold import fitted_features


def trained_questions(config: Config) -> list[Question]:
    """Questions of the training split, without the fold that the score is fitted to.

    Raises:
        InputError: all of them are in the fold, or all have one target.
    """
    questions = read_questions(config.questions, "train")
    _, chosen = fold_of(questions, config.joint.fit_share)
    if not chosen:
        raise InputError(
            f"joint.fit_share is {config.joint.fit_share:g}: it leaves none of the {len(questions)} training questions "
            f"of {config.questions!r}; lower it"
        )
    check_targets(chosen, config.questions)
    return chosen


def fitted_questions(config: Config) -> list[Question]:
    """Questions of the fold that the score is fitted to, in the order of their ids; none where it is not fitted.

    Raises:
        InputError: no question is in the fold.
    """
    joint = config.joint
    if not joint.fit_questions:
        return []
    questions = sorted(read_questions(config.questions, "train"), key=lambda q: q.question_id)
    inside, _ = fold_of(questions, joint.fit_share)
    if not inside:
        raise InputError(
            f"joint.fit_questions is {joint.fit_questions}, and joint.fit_share {joint.fit_share:g} keeps none of the "
            f"{len(questions)} training questions of {config.questions!r} for the fit; raise fit_share (0.1 is usual), "
            "or set fit_questions=0"
        )
    chosen = evenly(inside, joint.fit_questions)
    if joint.shuffle_answers:  # the control, as in training
        chosen = shuffled_answers(chosen, np.random.default_rng(config.seed).permutation(len(chosen)).tolist())
    return chosen


def kept_share(config: Config) -> float:
    """Share of the targets that neither this run nor an earlier joint stage has trained on."""
    manifest = read_manifest(config.checkpoint, "CHECKPOINT")
    before = float(manifest.get("fit_share", 0.0)) if manifest["stage"] == "joint" else 1.0
    return min(before, config.joint.fit_share)


def check_fit(config: Config, store: MemoryStore) -> None:
    """Refuse a fit that could only fail, or that would mean something else than it says.

    Args:
        config: the root.
        store: the MEMORY that the run begins with.

    Raises:
        InputError: no question is in the fold, the reader has trained on it, candidates come from too few sources, or
            the INDEX lacks one of them.
    """
    joint = config.joint
    if not fitted_questions(config):
        return
    if (kept := kept_share(config)) < joint.fit_share:
        raise InputError(
            f"joint.fit_share is {joint.fit_share:g}, and an earlier joint stage of {config.checkpoint!r} has kept "
            f"{kept:g} of the targets from training: its reader has memorised the others; lower fit_share to that, or "
            "begin with a CHECKPOINT that was trained with it"
        )
    names = fitted_features(joint)
    if joint.published_pool or len(names) < 2:
        where = "published pools" if joint.published_pool else " and ".join(names) or "no source"
        raise InputError(
            f"joint.fit_questions is {joint.fit_questions}, and candidates come from {where}: weights of several "
            "sources are fitted to candidates of all of them; set joint.published_pool=false and two or more of "
            f"{', '.join(SOURCE_SETTINGS.values())}, or fit_questions=0"
        )
    fusion: Fusion = Checkpoint.open(config.checkpoint, lazy=True).settings.fusion
    if missing := [name for name in fusion.features if name not in names]:
        raise InputError(
            f"the CHECKPOINT's fused score has a weight for {missing[0]}, and joint.{SOURCE_SETTINGS[missing[0]]} is "
            "0: the fit would drop that weight; set it, or joint.fit_questions=0"
        )
    index = Artefact.open(config.index, "INDEX", lazy=True)
    inputs = SourceInputs(store, index, config.retrieval)
    for name in names:
        if name != "memory":
            inputs.check_part(name, f"joint.{SOURCE_SETTINGS[name]} is above 0 and the score is fitted with {name}")
