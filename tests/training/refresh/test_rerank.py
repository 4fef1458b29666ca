"""Re-ranking: pools are scored on fresh memory exactly where stored memory is older than the compressor."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from clara.config.model import Backbone
from clara.config.tree import Config
from clara.data.questions import read_questions
from clara.model.checkpoint import load_checkpoint
from clara.model.geometry import cosine
from clara.model.model import ClaraModel
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.engine import LocalEngine
from training.loop.lines import read
from training.refresh.versions import Versions
from training.stages.joint_stage import JointStage


def drifted(world: World) -> ClaraModel:
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.role_parameters("compressor"):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return model


def stage(world: World, folder: Path, model: ClaraModel, **refresh: object) -> JointStage:
    config = Config.model_validate(
        {
            "checkpoint": str(world.checkpoint),
            "memory": str(world.memory),
            "index": str(world.index),
            "backbone": {"dtype": "float32"},
            "joint": {
                "questions_per_step": 4,
                "micro_batch": 2,
                "num_candidates": 8,
                "num_selected": 2,
                "from_index": 3,
                "from_bm25": 2,
                "in_batch": False,
                "right_memory_share": 0.6,
                "steps": 9,
                "train_compressor": True,
                "compressor_steps": 5,
                "refresh": refresh,
            },
        }
    )
    made = JointStage(
        model, read_questions(world.questions, "train"), config, Versions(config, folder, folder, None, 1)
    )
    made.begin(LocalEngine(torch.nn.Linear(1, 1), [(0.1, [torch.nn.Parameter(torch.zeros(1))])], made.optimiser))
    return made


def test_pools_are_scored_on_fresh_memory_of_each_document(world: World, tmp_path: Path) -> None:
    model = drifted(world)
    fresh_stage, stale_stage = (stage(world, tmp_path, model, rerank=on) for on in (True, False))
    scores, rights = [], 0
    for fresh, stale in zip(fresh_stage.micro_batches(2, 0, 1), stale_stage.micro_batches(2, 0, 1), strict=True):
        # The pool is found by what is stored, so that it is the same one; smaller than N here.
        assert torch.equal(fresh.valid, stale.valid)
        assert not fresh.valid.all()
        assert fresh.candidates == stale.candidates
        for row, texts in enumerate(fresh.candidates):
            alone = torch.cat([model.compress([text]) for text in texts])
            torch.testing.assert_close(fresh.memory[row, : len(texts)], alone, atol=1e-5, rtol=1e-4)
            assert not fresh.memory[row, len(texts) :].any()
            assert (fresh.right_memory[row] is None) == (stale.right_memory[row] is None)
            if (right := fresh.right_memory[row]) is not None:
                rights += 1
                assert not torch.allclose(right, stale.right_memory[row], atol=1e-2)
        assert not fresh.memory.requires_grad
        query = model.encode(fresh.questions, "query_reasoner").memory.detach()
        scores.append([cosine(query, batch.memory)[batch.valid] for batch in (fresh, stale)])
    assert rights
    assert any(float((a - b).abs().max()) > 0.01 for a, b in scores)


@pytest.mark.parametrize(("snapshot_step", "afresh"), [(0, [0, 1, 1, 1]), (4, [0, 0, 1, 1]), (5, [0, 0, 0, 0])])
def test_only_what_is_older_than_the_compressor_is_encoded_again(
    world: World, tmp_path: Path, tiny_model: ClaraModel, snapshot_step: int, afresh: list[int]
) -> None:
    """The compressor trains in five updates: a version of the snapshot after the fifth is exact for ever."""
    made = stage(world, tmp_path, tiny_model, rerank=True)
    made.versions.current = dataclasses.replace(made.versions.current, snapshot_step=snapshot_step)
    made.versions.open()
    assert [made.pool_memory.encodes_afresh(step) for step in (0, 2, 5, 8)] == [bool(a) for a in afresh]
    made.micro_batches(8, 0, 1)
    assert (made.pool_memory.rerank_seconds > 0) == bool(afresh[-1])


def test_it_composes_with_a_refresh_and_is_reported(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    values = {
        "joint__train_compressor": "true",
        "joint__compressor_steps": 3,
        "joint__steps": 6,
        "joint__refresh__rerank": "true",
        "joint__refresh__policy": "full",
        "joint__refresh__start_step": 3,
        "joint__refresh__switch": "fixed",
        "joint__refresh__delta_steps": 1,
    }
    assert joint.main(["--launcher", "local", *world.sets(tmp_path, **values)]) == 0
    metrics = read(next(tmp_path.glob("run-*")) / "metrics.jsonl")
    # Step 1 begins on memory that fits; from step 5 on the version of the compressor at rest is used.
    assert [step for step, v in metrics.items() if v["rerank_seconds"] > 0] == [2, 3, 4]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rerank_seconds"] == pytest.approx(sum(v["rerank_seconds"] for v in metrics.values()))
