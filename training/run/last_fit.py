"""The fit of the fused score to a MEMORY that was re-encoded after the last step, when the ranks have ended."""

import json
from pathlib import Path
from typing import Any

from clara.config.model import Fusion
from clara.config.tree import Config
from clara.model.artefact import Checkpoint
from clara.model.question_mean import replace_fusion
from clara.retrieval.pools import SourceInputs
from clara.retrieval.retriever import Retriever
from clara.storage.folders import atomic_write
from training.loop.engine import OneRank
from training.run.fold import fitted_questions
from training.run.last_encoding import FinishedRun, finished_run
from training.run.recipe import RunPaths
from training.score_fit.fold import FoldFit


def _note(where: RunPaths) -> Path:
    return where.run / "last-fit.json"


def last_fit(where: RunPaths) -> dict[str, Any]:
    """MEMORY version, fused score and figures of the fit; empty where none was made."""
    return dict(json.loads(_note(where).read_text())) if _note(where).is_file() else {}


def last_fit_due(config: Config, where: RunPaths, found: FinishedRun) -> bool:
    """Whether the newest MEMORY of a run that made all its steps came after the fit that the CHECKPOINT holds."""
    if not config.joint.fit_questions or found.current == int(found.state["current"]["number"]):
        return False
    note, held = last_fit(where), Checkpoint.open(where.checkpoint, lazy=True).settings.fusion
    return note.get("memory_version") != found.current or note["fusion"] != held.model_dump()


def fit_last(config: Config, where: RunPaths, device: str) -> None:
    """Fit the score of the CHECKPOINT to the newest MEMORY, if that is due; one process reads all pools.

    Args:
        config: the root, of a run that has made all its steps.
        where: its directories.
        device: of the model.

    Raises:
        InputError: see `FoldFit.fit`.
    """
    found = finished_run(config, where)
    if not last_fit_due(config, where, found):
        return
    if last_fit(where).get("memory_version") != found.current:
        fusion, figures = _fit(config, where, found, device)
        note = {"memory_version": found.current, "fusion": fusion.model_dump(), **figures}
        # Before the CHECKPOINT: a fit that was interrupted here and begins with other weights would round differently.
        atomic_write(_note(where), json.dumps(note, indent=1) + "\n")
    replace_fusion(where.checkpoint, Fusion(**last_fit(where)["fusion"]))


def _fit(config: Config, where: RunPaths, found: FinishedRun, device: str) -> tuple[Fusion, dict[str, float]]:
    retriever = Retriever.open(
        where.checkpoint,
        found.memory,
        found.index,
        backbone=config.backbone.path,
        device=device,
        retrieval=config.retrieval,
        accept_stale=True,  # a refresh that was under way after the last step is of an older compressor
    )
    fold = FoldFit(fitted_questions(config), config, where.run)
    index = retriever.index
    inputs = SourceInputs(retriever.store, None if index is None else index.artefact, config.retrieval, device)
    return fold.fit(retriever.model, retriever.store, index, inputs, OneRank())
