"""The questions' mean of a centred score: computed from unlabelled questions, and stored with a CHECKPOINT."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara.config.model import Fusion, Score
from clara.config.roles import QUERY_REASONER
from clara.errors import InputError
from clara.model.artefact import KIND, Checkpoint
from clara.model.checkpoint import QUESTION_MEAN_FILE, save_question_mean
from clara.model.model import ClaraModel
from clara.storage.folders import atomic_write
from clara.storage.manifest import MANIFEST, file_entry, make_directory, read_manifest, refuse_other, write_manifest
from clara.storage.transfer import link

MEAN_QUESTIONS = 256
"""Most questions that a mean is computed from: sixteen give as much as 140."""
_AT_ONCE = 16


@torch.no_grad()
def mean_query(model: ClaraModel, questions: Sequence[str]) -> Tensor:
    """Mean `[M, D]` of the query vectors of questions, before any centring, in float32."""
    total = torch.zeros(model.num_memory_tokens, model.hidden_size, dtype=torch.float64)
    for begin in range(0, len(questions), _AT_ONCE):
        ids = [model.question_ids(question) for question in questions[begin : begin + _AT_ONCE]]
        total += model.encode(ids, QUERY_REASONER).memory.double().sum(dim=0).cpu()
    return (total / max(1, len(questions))).float()


def is_missing(model: ClaraModel) -> bool:
    """Whether the score is centred and the questions' mean is not known."""
    mean = model.question_mean.mean
    return mean is not None and not bool(mean.any())


@torch.no_grad()
def set_missing_mean(model: ClaraModel, questions: Sequence[str]) -> None:
    """Compute the questions' mean from these questions if the score is centred and the mean is not known."""
    if is_missing(model) and model.question_mean.mean is not None:
        model.question_mean.mean.copy_(mean_query(model, questions))


def replace_fusion(directory: Path, fusion: Fusion) -> None:
    """Give a CHECKPOINT on this machine another fused score; its files stay."""
    manifest = read_manifest(directory, KIND)
    manifest["model"]["fusion"] = fusion.model_dump()
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def copy_with_score(
    checkpoint: Checkpoint,
    output: str | os.PathLike[str],
    score: Score,
    mean_MD: Tensor | None,
    *,
    fusion: Fusion | None = None,
    question_keeps: str | None = None,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a CHECKPOINT with the same weights and another score. Returns its manifest.

    Args:
        checkpoint: whose files become part of the copy, as hard links where that is possible.
        output: directory on this machine.
        score: of the copy.
        mean_MD: the questions' mean, if the score is centred; None keeps that of the checkpoint.
        fusion: weights of the fused score; None keeps those of the checkpoint.
        question_keeps: see `clara.config.model.Model`; None keeps that of the checkpoint.
        recipe: what made it.

    Raises:
        InputError: another artefact is in the output, a file of the checkpoint is missing or damaged, or the score is
            centred and there is no questions' mean.
    """
    held_settings = checkpoint.settings
    if score.centred and mean_MD is None and not held_settings.score.centred:
        raise InputError(f"{checkpoint.name}: has no questions' mean; a centred score needs one: give questions")
    directory, before = make_directory(output), checkpoint.manifest
    refuse_other(directory, KIND)
    (directory / "manifest.json").unlink(missing_ok=True)
    keeps_mean = score.centred and mean_MD is None
    files = [entry for entry in before["files"] if keeps_mean or entry["path"] != QUESTION_MEAN_FILE]
    link(checkpoint.folder, directory, files)
    if mean_MD is not None:
        save_question_mean(directory, mean_MD)
        files.append(file_entry(directory, QUESTION_MEAN_FILE))
    names = ("stage", "roles", "backbone", "tokenizer", "added_tokens", "prompts", "fit_share")
    return write_manifest(
        directory,
        kind=KIND,
        files=files,
        recipe=recipe,
        **{name: before[name] for name in names if name in before},
        model=held_settings.model_copy(
            update={
                "score": score,
                "fusion": fusion or held_settings.fusion,
                "question_keeps": question_keeps or held_settings.question_keeps,
            }
        ).model_dump(),
    )
