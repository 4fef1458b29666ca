"""Joint training with a fused score: features of the candidates reach the step, and everything ranks by z."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clara.config.load import load
from clara.config.model import Backbone, Fusion, Score
from clara.data.questions import read_questions
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint
from clara.model.geometry import cosine
from clara.model.question_mean import copy_with_score
from clara.retrieval.bm25 import Bm25
from clara.retrieval.ranker import Queries
from tests.helpers.joint_world import World
from training import joint
from training.loop.engine import LocalEngine
from training.loop.lines import read
from training.refresh.versions import Versions
from training.stages.joint_stage import JointStage

FUSION = Fusion(weights={"memory": 0.5, "bm25": 0.25})


@pytest.fixture(scope="module")
def fused(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same world with a CHECKPOINT whose score weighs BM25 too."""
    start = tmp_path_factory.mktemp("fused") / "start"
    copy_with_score(Checkpoint.open(world.checkpoint), start, Score(), None, fusion=FUSION, recipe={})
    return replace(world, checkpoint=start)


def stage_of(world: World, output: Path) -> JointStage:
    sets = [part for part in world.sets(output) if part != "--set"]
    config = load(None, sets)
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    questions = read_questions(world.questions, "train")
    stage = JointStage(model, questions, config, Versions(config, output, output, None, 1))
    stage.begin(LocalEngine(stage.module, stage.groups(), stage.optimiser))
    return stage


def test_a_batch_holds_bm25s_score_of_every_candidate(fused: World, tmp_path: Path) -> None:
    stage = stage_of(fused, tmp_path)
    store, bm25 = MemoryStore.open(fused.memory), Bm25.of_memory(MemoryStore.open(fused.memory))
    for batch in stage.micro_batches(0, 0, 1):
        assert batch.features is not None
        assert batch.features.shape == (*batch.valid.shape, 1)
        rows = store.row_ids
        memory = torch.from_numpy(store.memory(rows))
        for number, prompt in enumerate(batch.questions):
            text = stage.module.model.tokenizer.decode(prompt, skip_special_tokens=True)  # type: ignore[union-attr]
            expected = np.array(bm25.score(Queries([text], [()]), [rows.tolist()])[0])
            for place in np.flatnonzero(batch.valid[number].numpy()).tolist():
                row = int((memory - batch.memory[number, place]).abs().sum(dim=(1, 2)).argmin())
                assert batch.features[number, place, 0] == pytest.approx(expected[row], rel=1e-5)


def test_a_step_selects_by_z(fused: World, tmp_path: Path) -> None:
    stage = stage_of(fused, tmp_path)
    (batch, *_) = stage.micro_batches(0, 0, 1)
    assert batch.features is not None
    model = stage.module.model
    query = model.query(batch.questions)  # type: ignore[operator, union-attr]
    z = 0.5 * cosine(query, batch.memory) / 0.02 + 0.25 * batch.features[..., 0]
    best = z.masked_fill(~batch.valid, -torch.inf).argmax(dim=1)
    right = batch.positive.gather(1, best[:, None])[:, 0]
    figures = stage.module(batch, batch.weight, len(batch.questions)).figures
    assert figures["positive_first"][0] == float(right.sum())


def test_a_run_trains_measures_and_keeps_the_weights(fused: World, tmp_path: Path) -> None:
    more = {"joint__steps": 2, "joint__evaluate_every": 1, "joint__evaluate_questions": 4}
    assert joint.main(["--launcher", "local", *fused.sets(tmp_path / "out", **more)]) == 0
    assert Checkpoint.open(tmp_path / "out" / "checkpoint").settings.fusion == FUSION
    (run,) = (tmp_path / "out").glob("run-*")
    lines = read(run / "metrics.jsonl").values()
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert all("held_out_recall_at_5" in line for line in lines)


def test_another_temperature_than_that_of_the_weights_is_refused(fused: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"joint\.temperature is 0\.1, the fused score .* was made with 0\.02"):
        joint.main(["--launcher", "local", *fused.sets(tmp_path / "out", joint__temperature=0.1)])


def test_a_fold_of_the_targets_is_never_trained_on(world: World, tmp_path: Path) -> None:
    values = {"joint__steps": 1, "joint__fit_share": 0.4}
    assert joint.main(["--launcher", "local", *world.sets(tmp_path / "out", **values)]) == 0
    assert Checkpoint.open(tmp_path / "out" / "checkpoint").manifest["fit_share"] == 0.4
    with pytest.raises(InputError, match=r"joint\.fit_share is 0\.99.*: it leaves none of the \d+ training questions"):
        joint.main(["--launcher", "local", *world.sets(tmp_path / "none", joint__fit_share=0.999)])
