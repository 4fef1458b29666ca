"""Edges of the joint step: its choices, utilities and small pools."""

import math
from dataclasses import replace

import pytest
import torch

from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.model.geometry import represent
from clara.model.joint_batch import Unread
from clara.model.model import ClaraModel
from clara.model.steps import JointStep
from tests.helpers import tiny
from tests.helpers.batches import NUM_CANDIDATES, NUM_SELECTED, QUESTIONS, joint, joint_batch, touched


def test_utilities_are_each_candidates_own_answer_likelihood(tiny_model: ClaraModel):
    batch = joint_batch(tiny_model, (4, 4))
    utilities_BN, _ = JointStep(tiny_model, joint()).utilities(batch)
    for row in range(2):
        question, answer = QUESTIONS[3 * row]
        for n in range(NUM_CANDIDATES):
            wanted, _ = tiny_model.answer_log_likelihood([question], [batch.memory[row, n : n + 1]], [answer])
            assert utilities_BN[row, n].item() == pytest.approx(wanted.item(), abs=1e-3)
    step = JointStep(tiny_model, joint(utility_weight=1.0))
    given = step(replace(batch, utilities=utilities_BN), 10, 2).loss
    assert given.item() == pytest.approx(step(batch, 10, 2).loss.item(), abs=1e-5)


def test_with_target_mass_the_answer_given_nothing_is_read_too(tiny_model: ClaraModel):
    batch = joint_batch(tiny_model)
    step = JointStep(tiny_model, joint(utility_weight=1.0, answer_weight=0.0, utility_target="mass"))
    utilities_BN, without_B = step.utilities(batch)
    assert without_B is not None
    nothing = tiny_model.answer_losses(batch.prompts, [m[:0] for m in batch.memory], role=GENERATOR)
    torch.testing.assert_close(without_B, -nothing.per_row())
    given = step(replace(batch, utilities=utilities_BN, without=without_B), 10, 3).loss
    torch.testing.assert_close(given, step(batch, 10, 3).loss)


@pytest.mark.parametrize("kept", ["utility_weight", "labels_weight"])
def test_unread_rows_count_as_candidates_without_mass(tiny_model: ClaraModel, kept: str):
    """Moving a pool's last row to the unread ones changes no loss if the row has neither mass nor label."""
    batch = joint_batch(tiny_model, (4, 4, 4))
    batch = replace(batch, positive=torch.tensor([[True, False, False, False]] * 3))
    batch = replace(batch, utilities=torch.tensor([[-1.0, -2.0, -9.0, -9.0]] * 3), without=torch.tensor([-5.0] * 3))
    step = JointStep(tiny_model, joint(answer_weight=0.0, utility_target="mass", **{kept: 1.0}))
    valid = batch.valid.clone()
    valid[:, 3] = False
    own = torch.full((3, 3), -torch.inf).fill_diagonal_(0.0)
    unread = Unread(represent(batch.memory[:, 3], tiny_model.settings.score), own)
    moved = step(replace(batch, valid=valid, unread=unread), 10, 3).loss
    torch.testing.assert_close(moved, step(batch, 10, 3).loss)


def test_the_right_memory_takes_the_last_selected_place(tiny_model: ClaraModel):
    right = torch.full((tiny.NUM_MEMORY_TOKENS, tiny_model.hidden_size), 0.25)
    batch = replace(joint_batch(tiny_model, (4, 4)), right_memory=[right, None])
    step = JointStep(tiny_model, joint())
    weights_BKN = torch.eye(NUM_CANDIDATES)[:NUM_SELECTED].expand(2, -1, -1)
    indices_BK = torch.arange(NUM_SELECTED).expand(2, -1)
    first, second = step.selected_memories(batch, weights_BKN, indices_BK)
    assert torch.equal(first, torch.cat([batch.memory[0, :2], right[None]]))
    assert torch.equal(second, batch.memory[1, :3])


def test_a_pool_of_fewer_than_k_is_read_whole(tiny_model: ClaraModel):
    batch = joint_batch(tiny_model, (NUM_SELECTED - 1, NUM_CANDIDATES))
    step = JointStep(tiny_model, joint())
    weights_BKN = torch.eye(NUM_CANDIDATES)[:NUM_SELECTED].expand(2, -1, -1)
    small, large = step.selected_memories(batch, weights_BKN, torch.arange(NUM_SELECTED).expand(2, -1))
    assert torch.equal(small, batch.memory[0, : NUM_SELECTED - 1])
    assert torch.equal(large, batch.memory[1, :NUM_SELECTED])


@pytest.mark.parametrize("train_compressor", [True, False])
def test_a_question_without_any_candidate_is_answered_from_nothing(tiny_model: ClaraModel, train_compressor: bool):
    tiny_model.train_only([COMPRESSOR, QUERY_REASONER, GENERATOR])
    batch = joint_batch(tiny_model, (0,))
    output = JointStep(tiny_model, joint(train_compressor=train_compressor, labels_weight=1.0, utility_weight=1.0))(
        batch, batch.weight, 1
    )
    output.loss.backward()
    question, answer = QUESTIONS[0]
    wanted, num_tokens = tiny_model.answer_log_likelihood([question], [batch.memory[0, :0]], [answer])
    assert output.loss.item() == pytest.approx(-wanted.item() / num_tokens.item(), abs=1e-5)
    assert touched(tiny_model) == {"generator"}
    assert all(math.isfinite(total) for total, _ in output.figures.values())


def test_a_trained_compressor_needs_the_candidates_texts(tiny_model: ClaraModel):
    batch = replace(joint_batch(tiny_model), candidates=[])
    with pytest.raises(ValueError, match="candidates"):
        JointStep(tiny_model, joint(train_compressor=True))(batch, batch.weight, 3)


def test_retrieval_figures_count_pools_and_choices(tiny_model: ClaraModel):
    batch = joint_batch(tiny_model)
    scores_BN = (batch.memory.flatten(2) * batch.memory[:, :1].flatten(2)).sum(dim=-1) / batch.memory.flatten(2).norm(
        dim=-1
    ).clamp(min=1e-9)
    assert scores_BN[0].argmax().item() == 0
    figures = JointStep(tiny_model, joint())(batch, batch.weight, 3).figures
    assert figures["pool_has_positive"] == (2.0, 3)
    assert figures["positive_selected"][1] == figures["positive_first"][1] == 2.0
    assert figures["positive_first"][0] <= figures["positive_selected"][0] <= 2.0
    assert figures["answer_nats"][1] == batch.weight
