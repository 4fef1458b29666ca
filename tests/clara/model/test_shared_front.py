"""Prompts whose common front passes the LM once: equal to reading every prompt whole."""

from pathlib import Path

import pytest
import torch

from clara.config.roles import GENERATOR
from clara.model.lora import Route
from clara.model.prompts import Prompt
from clara.model.shared_front import num_shared_tokens
from tests.helpers import tiny


def test_reading_the_front_once_gives_the_same_likelihoods(tiny_backbone: Path) -> None:
    model = tiny.build_model(tiny_backbone, seed=3).eval()
    size = (model.num_memory_tokens, model.backbone.hidden_size)
    rng = torch.Generator().manual_seed(0)
    memories = [torch.randn(k, *size, generator=rng) for k in (1, 1, 2, 0, 1)]
    question, answer = "Who built the bridge of Arlen?", "the weavers of Corvinham"
    given = [question] * 5, memories, [answer] * 5
    expected, _ = model.answer_log_likelihood(*given)
    for _ in range(2):
        torch.testing.assert_close(model.answer_log_likelihood(*given, front_once=True)[0], expected)
        model.backbone.enable_checkpointing()
        mode = model.backbone.lm.training
    model.answer_log_likelihood(*given, front_once=True)
    assert model.backbone.lm.training == mode


@pytest.mark.parametrize("role", [GENERATOR, None])
def test_prompts_of_different_questions_and_raw_texts_share_what_they_begin_with(
    tiny_backbone: Path, role: str | None
) -> None:
    model = tiny.build_model(tiny_backbone, seed=3).eval()
    rows = tiny.documents()[:4]
    none = torch.zeros(0, model.num_memory_tokens, model.hidden_size)
    some = torch.randn(2, model.num_memory_tokens, model.hidden_size)
    asked = [
        model.prompts.question(f"Who governs {row['title']}?", "salt and wool"[: 4 + 3 * i])
        for i, row in enumerate(rows)
    ]
    texts = [model.prompts.text("Answer briefly.", row["text"], "salt") for row in rows]
    for prompts, memories in ((asked, [some, none, some[:1], none]), (texts, [none] * 4), (texts[:1] * 3, [none] * 3)):
        shared = num_shared_tokens(prompts, [len(m) for m in memories])
        assert 0 < shared < min(len(p.left) + len(p.right) for p in prompts)
        with torch.no_grad():
            expected = model.answer_losses(prompts, memories, role=role)
        found = model.answer_losses(prompts, memories, role=role, front_once=True)
        torch.testing.assert_close(found.nll, expected.nll)
        assert torch.equal(found.row, expected.row)


def test_the_shared_front_ends_before_memory_and_before_the_last_token_of_a_prompt() -> None:
    def prompt(left: list[int], right: list[int]) -> Prompt:
        return Prompt(left, right, [9], [1.0])

    assert num_shared_tokens([prompt([1, 2], [3]), prompt([1, 2], [3])], [1, 0]) == 2
    assert num_shared_tokens([prompt([1, 2], [3]), prompt([1, 2], [3])], [0, 0]) == 2
    assert num_shared_tokens([prompt([], [1, 2, 3]), prompt([], [1, 2, 4, 5])], [0, 0]) == 2
    assert num_shared_tokens([prompt([], [1]), prompt([], [1])], [0, 0]) == 0
    assert num_shared_tokens([prompt([1, 2], [3]), prompt([2, 2], [3])], [1, 1]) == 0
    assert num_shared_tokens([prompt([1, 2], [3])], [1]) == 0


def test_rows_behind_a_front_see_it_and_not_each_other(tiny_backbone: Path) -> None:
    backbone = tiny.build_model(tiny_backbone, seed=3).eval().backbone
    rows_BLD = torch.randn(3, 9, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    rows_BLD[:, :4] = rows_BLD[:1, :4]
    with torch.no_grad():
        whole_BLD = backbone.trunk(rows_BLD, Route("generator"))
    torch.testing.assert_close(
        backbone.trunk_after(rows_BLD[:1, :4], rows_BLD[:, 4:], Route("generator")), whole_BLD[:, 4:]
    )
