"""The likelihood of one answer given each memory: equal to reading every prompt whole."""

from pathlib import Path

import torch

from clara.model.lora import Route
from clara.model.pool_likelihood import log_likelihoods_of_each
from tests.helpers import tiny


def test_reading_the_front_once_gives_the_same_likelihoods(tiny_backbone: Path) -> None:
    model = tiny.build_model(tiny_backbone, seed=3).eval()
    size = (model.num_memory_tokens, model.backbone.hidden_size)
    rng = torch.Generator().manual_seed(0)
    memories = [torch.randn(k, *size, generator=rng) for k in (1, 1, 2, 0, 1)]
    question, answer = "Who built the bridge of Arlen?", "the weavers of Corvinham"
    expected, _ = model.answer_log_likelihood([question] * 5, memories, [answer] * 5)
    for _ in range(2):
        torch.testing.assert_close(log_likelihoods_of_each(model, question, answer, memories), expected)
        model.backbone.enable_checkpointing()
        mode = model.backbone.lm.training
    log_likelihoods_of_each(model, question, answer, memories)
    assert model.backbone.lm.training == mode


def test_rows_behind_a_front_see_it_and_not_each_other(tiny_backbone: Path) -> None:
    backbone = tiny.build_model(tiny_backbone, seed=3).eval().backbone
    rows_BLD = torch.randn(3, 9, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    rows_BLD[:, :4] = rows_BLD[:1, :4]
    with torch.no_grad():
        whole_BLD = backbone.trunk(rows_BLD, Route("generator"))
    torch.testing.assert_close(
        backbone.trunk_after(rows_BLD[:1, :4], rows_BLD[:, 4:], Route("generator")), whole_BLD[:, 4:]
    )
