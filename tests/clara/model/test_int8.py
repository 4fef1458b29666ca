"""Layers in int8: the products are those of the integers, a token depends on no other, one adapter alone is merged."""

from pathlib import Path

import pytest
import torch
from torch import nn

from clara.config.model import Backbone
from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.errors import InputError
from clara.model.checkpoint import load_checkpoint, load_compressor
from clara.model.int8 import Int8Linear, merge_in_int8
from clara.model.lora import Route
from clara.model.model import ClaraModel
from tests.helpers import tiny

SHAPES = [(192, 576), (17, 33), (1, 5)]


def by_hand(weight_OI: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The formula of the docstring, summed in 64-bit integers."""
    w, s = weight_OI.abs().amax(dim=1) / 63, x.abs().amax(dim=-1, keepdim=True) / 127
    sums = (x / s).round().long() @ (weight_OI / w[:, None]).round().long().T
    return sums.double() * w * s


@pytest.mark.parametrize("shape", SHAPES)
def test_the_products_are_those_of_the_integers(shape: tuple[int, int]) -> None:
    weight_OI, x = torch.randn(shape), torch.randn(3, 7, shape[1])
    expected = by_hand(weight_OI, x)
    torch.testing.assert_close(Int8Linear(weight_OI, None)(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_largest_products_do_not_overflow() -> None:
    weight_OI = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).repeat(8, 288)
    x = torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).repeat(2, 288)
    torch.testing.assert_close(Int8Linear(weight_OI, None)(x), x @ weight_OI.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_depends_on_no_other(shape: tuple[int, int]) -> None:
    """Bit for bit: alone, in a batch, in another order, with padding, beside a token that is a million times larger."""
    layer, x = Int8Linear(torch.randn(shape), torch.randn(shape[0])), torch.randn(5, 40, shape[1])
    together = layer(x)
    assert torch.equal(layer(x.flip(0)).flip(0), together)
    assert torch.equal(layer(torch.cat([x, torch.zeros(5, 9, shape[1])], dim=1))[:, :40], together)
    assert torch.equal(layer(torch.cat([x, x[:1] * 1e6]))[:5], together)
    for row, token in ((0, 0), (2, 17), (4, 39)):
        assert torch.equal(layer(x[row, token]), together[row, token])


def test_tokens_of_zeros_give_the_bias_and_what_is_not_finite_stays_so() -> None:
    bias_O = torch.randn(4)
    layer = Int8Linear(torch.randn(4, 6), bias_O)
    assert torch.equal(layer(torch.zeros(2, 6)), bias_O.expand(2, -1))
    x = torch.randn(3, 6)
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    assert layer(x).isfinite().all(dim=1).tolist() == [False, False, True]
    assert torch.equal(Int8Linear(torch.zeros(2, 6), None)(torch.randn(3, 6)), torch.zeros(3, 2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_one_adapter_is_merged_and_the_others_compute_as_before(family: str, tmp_path: Path) -> None:
    model = tiny.build_model(tiny.write_backbone(tmp_path, family=family))
    x = torch.randn(2, 9, model.hidden_size)
    before = {role: model.backbone.trunk(x, Route(role)).detach() for role in (None, QUERY_REASONER, GENERATOR)}
    exact = model.backbone.trunk(x, Route(COMPRESSOR)).detach()
    assert model.backbone.type_of_passes(COMPRESSOR) == "float32"
    merge_in_int8(model.backbone.layers, COMPRESSOR)
    for role, hidden in before.items():
        assert torch.equal(model.backbone.trunk(x, Route(role)), hidden)
    assert [model.backbone.type_of_passes(role) for role in (COMPRESSOR, GENERATOR)] == ["int8", "float32"]
    rounded = model.backbone.trunk(x, Route(COMPRESSOR))
    cosine = nn.functional.cosine_similarity(rounded.flatten(1), exact.flatten(1))
    assert 0.99 < cosine.min() < 0.9999999
    plain = nn.functional.cosine_similarity(before[None].flatten(1), exact.flatten(1))
    assert (1 - cosine).max() < (1 - plain).min() / 5  # what is merged is the adapter, not only the LM


def texts(model: ClaraModel) -> list[list[int]]:
    return [model.document_ids(row["text"])[: 9 + 11 * n] for n, row in enumerate(tiny.documents()[:6])]


def test_memory_in_int8_is_near_that_in_float32_alone_and_in_any_batch(tiny_checkpoint: Path) -> None:
    exact = load_checkpoint(tiny_checkpoint, Backbone(dtype="float32")).eval()
    model = load_compressor(tiny_checkpoint, "int8")
    given = texts(model)
    together = model.compress(given)
    torch.testing.assert_close(together, model.compress(given[::-1]).flip(0), rtol=0, atol=0)
    alone = torch.cat([model.compress([text]) for text in given])
    for other, least in ((alone, 0.9999), (exact.compress(given), 0.995)):
        print(nn.functional.cosine_similarity(together.flatten(1), other.flatten(1)))
        assert nn.functional.cosine_similarity(together.flatten(1), other.flatten(1)).min() > least


def test_int8_on_a_gpu_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"--dtype int8 with --device cuda: int8 is computed on a CPU only; give"):
        load_compressor(tiny_checkpoint, "int8", device="cuda")
