"""Weights from statistics of scores: closed forms, and the command."""

from pathlib import Path

import numpy as np
import pytest

from clara.errors import InputError
from clara.model.artefact import Checkpoint
from tests.helpers.evaluation_world import World
from training import fit_score
from training.score_fit.unfitted import LEAD, statistical_weights

QUESTIONS, ROWS = 3, 200


def scores(lead: float, best: int = 0) -> np.ndarray:
    """`[Q, N]`: one row is ahead of all others, which are equal but for their order, by `lead`."""
    found = np.tile(np.linspace(1e-9, 0.0, ROWS), (QUESTIONS, 1))
    found[:, best] = lead
    return found


def test_every_source_gets_the_same_lead() -> None:
    features = np.stack([scores(2.0), scores(0.5)], axis=-1).astype(np.float32)
    weights = statistical_weights(["bm25", "dense"], features, np.ones((QUESTIONS, ROWS), bool))
    # The best of 100 rows is 0.99 of its lead above their mean.
    assert weights == pytest.approx({"bm25": LEAD / (2.0 * 0.99), "dense": LEAD / (0.5 * 0.99)}, rel=1e-6)


def test_memory_counts_as_far_as_it_finds_what_another_source_finds() -> None:
    words, memory = scores(1.0), scores(1.0)
    agreeing = np.stack([memory, words], axis=-1).astype(np.float32)
    # The same order from the other end: of the first 20 rows only the one ahead is shared.
    opposed = np.stack([np.concatenate([memory[:, :1], memory[:, :0:-1]], axis=1), words], axis=-1).astype(np.float32)
    allowed = np.ones((QUESTIONS, ROWS), bool)
    full, little = (statistical_weights(["memory", "bm25"], found, allowed) for found in (agreeing, opposed))
    assert full["memory"] == pytest.approx(full["bm25"])
    assert little["memory"] == pytest.approx(full["memory"] / 20)


def test_a_source_that_ranks_nothing_gets_no_weight() -> None:
    features = np.stack([scores(1.0), np.zeros((QUESTIONS, ROWS))], axis=-1).astype(np.float32)
    weights = statistical_weights(["bm25", "dense"], features, np.ones((QUESTIONS, ROWS), bool))
    assert weights["dense"] == 0.0
    assert weights["bm25"] > 0


def test_an_excluded_row_gives_no_lead() -> None:
    features = np.stack([scores(9.0), scores(1.0, best=1)], axis=-1).astype(np.float32)
    allowed = np.ones((QUESTIONS, ROWS), bool)
    allowed[:, 0] = False
    weights = statistical_weights(["bm25", "dense"], features, allowed)
    assert weights["bm25"] > 1e6 * weights["dense"]


def arguments(world: World, output: Path, *more: str) -> list[str]:
    command = ["--checkpoint", str(world.trained), "--memory", str(world.memory), "--index", str(world.index)]
    return [*command, "--questions", str(world.questions), "--output", str(output), *more]


def test_the_command_reads_the_questions_of_one_split(evaluation_artefacts: World, tmp_path: Path) -> None:
    weights = []
    for split in ("unseen", ""):
        output = tmp_path / f"fused-{split}"
        assert fit_score.main(arguments(evaluation_artefacts, output, "--split", split, "--limit", "3")) == 0
        weights.append(Checkpoint.open(output).settings.fusion.weights)
    assert all(value >= 0 for found in weights for value in found.values())
    assert weights[0] != weights[1]
    with pytest.raises(InputError, match="split"):
        fit_score.main(arguments(evaluation_artefacts, tmp_path / "x", "--split", "nowhere"))


@pytest.mark.parametrize("given", [("--split", "train"), ("--limit", "5")])
def test_questions_are_not_chosen_beside_utilities(
    evaluation_artefacts: World, tmp_path: Path, given: tuple[str, str]
) -> None:
    with pytest.raises(InputError, match="--split and --limit choose the questions of the statistics"):
        fit_score.main(arguments(evaluation_artefacts, tmp_path / "x", "--utilities", str(tmp_path / "u"), *given))
