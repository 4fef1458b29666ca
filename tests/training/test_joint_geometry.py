"""Joint training with another geometry of the score than the published one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clara.config.model import Backbone, Score
from clara.data.questions import read_questions
from clara.errors import InputError
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint
from clara.model.question_mean import copy_with_score, mean_query
from clara.retrieval.retriever import Retriever
from tests.helpers.joint_world import World
from training import joint


def test_a_centred_score_trains_over_published_pools_and_moves_the_questions_mean(world: World, tmp_path: Path) -> None:
    """A mean that is not known is computed from the training questions first; an INDEX of another score is refused."""
    start = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    shape = (start.num_memory_tokens, start.hidden_size)
    score = Score(pooling="slot_mean", centred=True)
    copy_with_score(Checkpoint.open(world.checkpoint), tmp_path / "start", score, torch.zeros(shape), recipe={})
    values = {"checkpoint": tmp_path / "start", "joint__published_pool": True, "joint__steps": 2}
    values |= {"joint__train_question_mean": True, "joint__train_generator": False}
    with pytest.raises(InputError, match="leave it out"):
        joint.main(["--launcher", "local", *world.sets(tmp_path / "refused", **values)])
    assert joint.main(["--launcher", "local", *world.sets(tmp_path / "out", **values, index="")]) == 0
    known = mean_query(start, [q.question for q in read_questions(world.questions, "train")])
    trained = load_file(tmp_path / "out" / "checkpoint" / "question_mean.safetensors")["mean"]
    assert not torch.equal(trained, known)
    torch.testing.assert_close(trained, known, atol=0.01, rtol=0)  # two updates at a rate of 1e-3
    opened = Retriever.open(tmp_path / "out" / "checkpoint", world.memory)
    found, _ = opened.search(opened.queries(["Who is the mayor?"]), 3)
    assert len(set(found[0].tolist())) == 3
