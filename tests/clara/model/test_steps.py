"""The steps of the three stages: gradients against brute force, what trains, and what a step must not depend on."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.config.stages import Instruct, Joint, Optimiser, Pretrain
from clara.model.joint_batch import JointBatch
from clara.model.lora import Route, current_route, routed
from clara.model.model import ClaraModel
from clara.model.steps import InstructStep, JointStep, PretrainStep
from tests.helpers import tiny
from tests.helpers.batches import (
    instruct_batch,
    joint,
    joint_batch,
    pretrain_batch,
    touched,
)
from tests.helpers.naive import Gradients, assert_same, gradients, naive_joint_loss
from training.loop.engine import LocalEngine

# --- gradients against brute force -----------------------------------------------------------------------------------


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("train_compressor", [False, True])
def test_joint_gradients_equal_a_naive_step_that_encodes_every_candidate(
    tiny_backbone: Path, train_compressor: bool, markers: bool
):
    model = tiny.build_model(tiny_backbone, markers=markers).double()
    settings = joint(train_compressor=train_compressor)
    batch = joint_batch(model, stale=0.3 if train_compressor else 0.0)
    model.train_only([QUERY_REASONER, GENERATOR, "memory_tokens", *[COMPRESSOR] * train_compressor])
    output = JointStep(model, settings)(batch, batch.weight, len(batch.questions))
    output.loss.backward()
    assert (COMPRESSOR in touched(model)) == train_compressor
    ours = gradients(model)
    naive = naive_joint_loss(model, batch, settings)
    naive.backward()
    assert output.loss.item() == pytest.approx(naive.item(), abs=1e-10)
    assert_same(ours, gradients(model))


@pytest.mark.parametrize("pooling", ["flattened", "slot_mean"])
def test_joint_gradients_of_a_centred_score_equal_a_naive_step_and_reach_the_questions_mean(
    tiny_backbone: Path, pooling: str
):
    model = tiny.build_model(tiny_backbone, score={"pooling": pooling, "centred": True}).double()
    batch = joint_batch(model)
    noise = 0.1 * torch.randn(2, *batch.memory.shape[2:], generator=torch.Generator().manual_seed(1)).double()
    batch = replace(batch, corpus_mean=batch.memory[0, :4].mean(dim=0) + noise[0])
    mean = model.question_mean.mean
    assert mean is not None
    mean.data.copy_(model.encode(batch.questions, QUERY_REASONER).memory.mean(dim=0) + noise[1])
    model.train_only([QUERY_REASONER, GENERATOR, "question_mean"])
    output = JointStep(model, joint())(batch, batch.weight, len(batch.questions))
    output.loss.backward()
    assert mean.grad is not None
    assert mean.grad.any()
    ours = gradients(model)
    naive = naive_joint_loss(model, batch, joint())
    naive.backward()
    assert output.loss.item() == pytest.approx(naive.item(), abs=1e-10)
    assert_same(ours, gradients(model))


def test_pretrain_gradients_equal_a_naive_step(tiny_backbone: Path):
    model = tiny.build_model(tiny_backbone).double()
    model.train_only([COMPRESSOR, GENERATOR, "memory_tokens"])
    batch = pretrain_batch(model, [0, 1, 2])
    PretrainStep(model, Pretrain(mse_weight=0.1))(batch, batch.weight, 3).loss.backward()
    ours = gradients(model)
    loss, difference = 0.0, 0.0
    for text, prompt in zip(batch.documents, batch.prompts, strict=True):
        encoded = model.encode([text], COMPRESSOR)
        difference = difference + (encoded.memory_mean - encoded.text_mean).square().sum() / model.hidden_size
        inputs_1LD, (front,) = model.inputs([prompt], [encoded.memory])
        with routed(Route(GENERATOR)):
            log_probabilities = model.backbone.lm(inputs_embeds=inputs_1LD).logits[0].log_softmax(dim=-1)
        loss = loss - sum(
            w * log_probabilities[front - 1 + i, t]
            for i, (t, w) in enumerate(zip(prompt.answer, prompt.weights, strict=True))
        )
    (loss / sum(sum(p.weights) for p in batch.prompts) + 0.1 * difference / 3).backward()
    assert_same(ours, gradients(model))


# --- what trains -----------------------------------------------------------------------------------------------------


def test_V9_pretrain_trains_compressor_generator_and_memory_tokens(tiny_model: ClaraModel):
    tiny_model.train_only([COMPRESSOR, GENERATOR, "memory_tokens"])
    batch = pretrain_batch(tiny_model, [0, 1])
    PretrainStep(tiny_model, Pretrain())(batch, batch.weight, 2).loss.backward()
    assert touched(tiny_model) == {"compressor", "generator", "memory_tokens"}


@pytest.mark.parametrize("train_compressor", [True, False])
def test_V9_instruct_trains_generator_and_where_asked_compressor(tiny_model: ClaraModel, train_compressor: bool):
    tiny_model.train_only([GENERATOR, *[COMPRESSOR] * train_compressor])
    batch = instruct_batch(tiny_model, [[0, 1], [2]])
    InstructStep(tiny_model, Instruct(train_compressor=train_compressor))(batch, batch.weight, 3).loss.backward()
    assert touched(tiny_model) == {"generator"} | ({"compressor"} if train_compressor else set())


def test_V9_joint_trains_query_reasoner_and_generator(tiny_model: ClaraModel):
    tiny_model.train_only([QUERY_REASONER, GENERATOR])
    batch = joint_batch(tiny_model)
    JointStep(tiny_model, joint())(batch, batch.weight, 3).loss.backward()
    assert touched(tiny_model) == {"query_reasoner", "generator"}


def test_only_the_named_parameters_change(tiny_model: ClaraModel):
    """With weight decay, which would also move a parameter that has no gradient."""
    roles = [QUERY_REASONER, GENERATOR]
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    settings = Optimiser(learning_rate=0.01, weight_decay=0.1)
    engine = LocalEngine(JointStep(tiny_model, joint()), [(0.01, tiny_model.train_only(roles))], settings)
    batch = joint_batch(tiny_model)
    for _ in range(2):
        engine.backward(engine.forward(batch, batch.weight, 3).loss, last=True)
        engine.update([1.0])
    changed = {name for name, p in tiny_model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if any(f"adapters.{role}." in name for role in roles)}


def test_the_control_cuts_the_answer_from_the_query_reasoner(tiny_model: ClaraModel):
    tiny_model.train_only([QUERY_REASONER, GENERATOR])
    batch = joint_batch(tiny_model)
    whole, cut = JointStep(tiny_model, joint()), JointStep(tiny_model, joint(cut_gradient=True))
    assert whole(batch, 10, 3).loss.item() == cut(batch, 10, 3).loss.item()
    cut(batch, 10, 3).loss.backward()
    assert touched(tiny_model) == {"generator"}


def test_labels_and_utility_alone_train_the_query_reasoner(tiny_model: ClaraModel):
    for weights in ({"labels_weight": 1.0}, {"utility_weight": 1.0}):
        tiny_model.train_only([QUERY_REASONER, GENERATOR])
        batch = joint_batch(tiny_model)
        JointStep(tiny_model, joint(answer_weight=0.0, **weights))(batch, batch.weight, 3).loss.backward()
        assert touched(tiny_model) == {"query_reasoner"}
        tiny_model.zero_grad()


def test_a_frozen_part_has_no_dropout(tiny_backbone: Path):
    model = tiny.build_model(tiny_backbone, lora={"rank": 4, "alpha": 8.0, "dropout": 0.5}).train()
    batch = joint_batch(model)

    def losses(settings: Joint) -> set[float]:
        return {JointStep(model, settings)(batch, batch.weight, 3).loss.item() for _ in range(3)}

    assert len(losses(joint(train_query_reasoner=False, train_generator=False))) == 1
    assert len(losses(joint(train_query_reasoner=False))) == 3
    instruct = InstructStep(model, Instruct(train_compressor=False))
    means = {instruct(instruct_batch(model, [[0, 1]]), 5, 2).figures["mse"][0] for _ in range(3)}
    assert len(means) == 1


# --- what a step must not depend on ----------------------------------------------------------------------------------


def steps(model: ClaraModel) -> dict[str, tuple[list[str], Callable[[], Tensor]]]:
    """Of every stage: the roles that train, and its loss on a small batch."""
    pretrain, instruct, joined = (
        pretrain_batch(model, [0, 1]),
        instruct_batch(model, [[0, 1], [2]]),
        joint_batch(model, stale=0.1),
    )
    settings = joint(train_compressor=True, labels_weight=0.5, utility_weight=0.5)
    return {
        "pretrain": (
            [COMPRESSOR, GENERATOR, "memory_tokens"],
            lambda: PretrainStep(model, Pretrain())(pretrain, pretrain.weight, 2).loss,
        ),
        "instruct": (
            [COMPRESSOR, GENERATOR],
            lambda: InstructStep(model, Instruct())(instruct, instruct.weight, 3).loss,
        ),
        "joint": (
            [COMPRESSOR, QUERY_REASONER, GENERATOR],
            lambda: JointStep(model, settings)(joined, joined.weight, 3).loss,
        ),
    }


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "joint"])
def test_activation_checkpointing_gives_the_same_gradients_and_leaks_no_route(tiny_backbone: Path, stage: str):
    model = tiny.build_model(tiny_backbone, lora={"rank": 4, "alpha": 8.0, "dropout": 0.2}).double()
    roles, loss = steps(model)[stage]
    model.train_only(roles)
    layer_calls = []
    model.backbone.lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: layer_calls.append(current_route()))

    def run() -> tuple[Gradients, int]:
        layer_calls.clear()
        torch.manual_seed(4)
        value = loss()
        assert current_route() == Route()
        with routed(
            Route("query_reasoner", dropout=True)
        ):  # whatever is active at the backward pass is not what recomputation uses
            value.backward()
            assert current_route() == Route("query_reasoner", dropout=True)
        return gradients(model), len(layer_calls)

    plain, num_calls = run()
    model.backbone.enable_checkpointing()
    model.eval()  # and no mode switches recomputation off
    recomputed, num_calls_recomputing = run()
    assert num_calls_recomputing > num_calls
    assert_same(recomputed, plain, 1e-12)
    assert current_route() == Route()


def test_a_recomputed_pass_can_go_backward_twice(tiny_backbone: Path):
    model = tiny.build_model(tiny_backbone)
    model.backbone.enable_checkpointing()
    roles, loss = steps(model)["pretrain"]
    parameters = model.train_only(roles)
    value = loss()
    once, twice = (torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def cut_joint(batch: JointBatch, part: slice) -> JointBatch:
    return replace(
        batch,
        questions=batch.questions[part],
        prompts=batch.prompts[part],
        memory=batch.memory[part],
        valid=batch.valid[part],
        positive=batch.positive[part],
        candidates=batch.candidates[part],
    )


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "joint"])
def test_cutting_a_step_into_micro_batches_changes_no_gradient(tiny_backbone: Path, stage: str):
    """Rows have unequal numbers of answer tokens, and one question of the joint step has no known positive."""
    model = tiny.build_model(tiny_backbone).double()
    roles, _ = steps(model)[stage]
    model.train_only(roles)
    if stage == "pretrain":
        step, whole, rows = PretrainStep(model, Pretrain()), pretrain_batch(model, [0, 1, 2]), 3
        parts = [pretrain_batch(model, [0]), pretrain_batch(model, [1, 2])]
    elif stage == "instruct":
        step, whole, rows = InstructStep(model, Instruct()), instruct_batch(model, [[0, 1], [2], [3, 4]]), 5
        parts = [instruct_batch(model, [[0, 1]]), instruct_batch(model, [[2], [3, 4]])]
    else:
        step, rows = JointStep(model, joint(train_compressor=True, labels_weight=0.5, utility_weight=0.5)), 3
        whole = joint_batch(model, stale=0.1)
        parts = [cut_joint(whole, slice(0, 1)), cut_joint(whole, slice(1, 3))]
    output = step(whole, whole.weight, rows)
    output.loss.backward()
    at_once = gradients(model)
    figures = {name: [0.0, 0.0] for name in output.figures}
    for part in parts:
        micro = step(part, whole.weight, rows)
        micro.loss.backward()
        for name, (total, count) in micro.figures.items():
            figures[name] = [figures[name][0] + total, figures[name][1] + count]
    assert_same(gradients(model), at_once)
    for name, (total, count) in output.figures.items():
        assert figures[name] == pytest.approx([total, count], abs=1e-6), name


def test_the_order_of_a_pool_does_not_matter(tiny_backbone: Path):
    model = tiny.build_model(tiny_backbone).double()
    model.train_only([COMPRESSOR, QUERY_REASONER, GENERATOR])
    step = JointStep(model, joint(train_compressor=True, labels_weight=0.5, utility_weight=0.5))
    batch = joint_batch(model, (4, 4), stale=0.1)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = replace(
        batch,
        memory=batch.memory[:, order],
        positive=batch.positive[:, order],
        candidates=[[row[n] for n in order] for row in batch.candidates],
    )
    step(batch, 10, 2).loss.backward()
    wanted = gradients(model)
    step(shuffled, 10, 2).loss.backward()
    assert_same(gradients(model), wanted)


# --- families --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "pad"),
    [(tiny.CHATML, True), (tiny.CHATML, False), (tiny.WITHOUT_SYSTEM, True), (tiny.WITHOUT_SYSTEM, False)],
)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3", "gpt2"])
def test_model_families_run_every_stage_with_and_without_system_role_and_pad_token(
    tmp_path: Path, family: str, template: str, pad: bool
):
    model = tiny.build_model(tiny.write_backbone(tmp_path, family, template=template, pad=pad))
    if not pad:
        model.tokenizer.pad_token = None  # which Qwen's class brings along
    prompt = model.tokenizer.decode(model.prompts.question("Who?").left)
    assert "You are a helpful assistant." in prompt
    assert ("system" in prompt) == (template == tiny.CHATML)
    for stage in ("pretrain", "instruct", "joint"):
        roles, loss = steps(model)[stage]
        model.train_only(roles)
        model.zero_grad()
        value = loss()
        value.backward()
        assert math.isfinite(value.item())
        assert touched(model) == set(roles)
        assert all(torch.isfinite(g).all() for g in gradients(model).values())
    assert len(model.generate(["Who?"], [model.compress([[5, 6]])], max_new_tokens=2)) == 1
