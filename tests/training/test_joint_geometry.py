"""Joint training, held-out looks, evaluation and utilities with another geometry of the score than the published."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clara.config.model import Backbone, Score
from clara.data.questions import read_questions
from clara.data.utilities import read_utilities
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.keys import IndexKeys
from clara.index.search import MemoryIndex
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint
from clara.model.question_mean import copy_with_score, mean_query
from clara.retrieval.memory_ranker import ExactSearch
from clara.retrieval.retriever import Retriever
from clara.storage.manifest import read_manifest
from pipelines.score_utilities import command as score_utilities
from tests.helpers.joint_world import Inline, World
from training import evaluate, joint
from training.loop.lines import read

SCORE = Score(pooling="slot_mean", centred=True)


@pytest.fixture(scope="module")
def centred(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same world with a CHECKPOINT and an INDEX of a centred score of slot means."""
    folder = tmp_path_factory.mktemp("centred")
    start = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    mean = mean_query(start, [q.question for q in read_questions(world.questions, "train")])
    copy_with_score(Checkpoint.open(world.checkpoint), folder / "start", SCORE, mean, recipe={})
    build_index(world.memory, folder / "index", score=SCORE)
    return replace(world, checkpoint=folder / "start", index=folder / "index")


def test_a_centred_score_trains_over_published_pools_and_moves_the_questions_mean(world: World, tmp_path: Path) -> None:
    """A mean that is not known is computed from the training questions first; an INDEX of another score is refused."""
    start = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    shape = (start.num_memory_tokens, start.hidden_size)
    copy_with_score(Checkpoint.open(world.checkpoint), tmp_path / "start", SCORE, torch.zeros(shape), recipe={})
    values = {"checkpoint": tmp_path / "start", "joint__published_pool": True, "joint__steps": 2}
    values |= {"joint__train_question_mean": True, "joint__train_generator": False}
    with pytest.raises(InputError, match="leave the index out"):
        joint.main(["--launcher", "local", *world.sets(tmp_path / "refused", **values)])
    assert joint.main(["--launcher", "local", *world.sets(tmp_path / "out", **values, index="")]) == 0
    known = mean_query(start, [q.question for q in read_questions(world.questions, "train")])
    trained = load_file(tmp_path / "out" / "checkpoint" / "question_mean.safetensors")["mean"]
    assert not torch.equal(trained, known)
    torch.testing.assert_close(trained, known, atol=0.01, rtol=0)  # two updates at a rate of 1e-3
    opened = Retriever.open(tmp_path / "out" / "checkpoint", world.memory)
    found, _ = opened.search(opened.queries(["Who is the mayor?"]), 3)
    assert len(set(found[0].tolist())) == 3


@pytest.mark.parametrize("policy", ["full", "incremental"])
def test_a_refresh_builds_the_index_of_the_models_score_with_the_new_mean(
    centred: World, tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    settings = {"retrieval__exact_rows": 0, "retrieval__factory": "auto", "joint__steps": 3}
    settings |= {"joint__train_compressor": True, "joint__evaluate_every": 1, "joint__evaluate_questions": 5}
    settings |= {"joint__refresh__policy": policy, "joint__refresh__start_step": 1, "joint__refresh__switch": "stop"}
    assert joint.main(["--launcher", "local", *centred.sets(tmp_path, **settings)]) == 0
    before, after = MemoryStore.open(centred.memory), MemoryStore.open(tmp_path / "memory-v1", mixed=True)
    assert not np.array_equal(before.mean, after.mean)
    for store, index in ((before, centred.index), (after, tmp_path / "index-v1")):
        recipe = read_manifest(index, "INDEX")["made_by"]["recipe"]
        assert recipe["score"] == SCORE.model_dump()
        assert recipe["mean"] == IndexKeys(store, SCORE).recipe["mean"]
        found = MemoryIndex.open(index, store, SCORE).search(before.memory(before.row_ids[:9]), 5, first_level=200)
        assert np.array_equal(found[0], ExactSearch(store, SCORE).search(before.memory(before.row_ids[:9]), 5, 200)[0])
    figures = read(next(tmp_path.glob("run-*")) / "metrics.jsonl")
    assert [values["used_memory_version"] for values in figures.values()] == [0, 1, 1]
    assert all("held_out_recall_at_5" in values for values in figures.values())


def test_evaluation_and_utilities_find_through_the_index_what_they_find_without(centred: World, tmp_path: Path) -> None:
    common = ["--questions", str(centred.questions), "--num-selected", "2", "--splits", "unseen", "--retrieval-only"]
    systems = [f"{centred.checkpoint},{centred.memory}{index}" for index in (f",{centred.index}", "")]
    named = [part for name, system in zip("ab", systems, strict=True) for part in ("--system", f"{name}={system}")]
    assert evaluate.main([*common, "--output", str(tmp_path / "report"), *named]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())["systems"]
    assert report["a"] == report["b"]
    given = {"questions": centred.questions, "checkpoint": centred.checkpoint, "memory": centred.memory}
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    arguments += ["--pool-size", "4", "--from-index", "3", "--from-bm25", "0", "--num-workers", "1"]
    pools = []
    for name, more in (("with", ["--index", str(centred.index)]), ("without", [])):
        assert score_utilities.main([*arguments, "--output", str(tmp_path / name), *more]) == 0
        pools.append({key: one.row_ids for key, one in read_utilities(tmp_path / name).items()})
    assert pools[0] == pools[1]
