"""What is behind a model's trunk is measured on the model: scales and caps are applied, everything else is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from clara.config.model import Lora
from clara.errors import InputError
from clara.model.backbone import Backbone
from clara.model.lora import Route
from tests.helpers.tiny import HIDDEN_SIZE

_SIZES = {
    "vocab_size": 90,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
_MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_SCALED = {
    "Cohere": {"logit_scale": 0.0625},
    "Cohere2": {"logit_scale": 3.0},
    "Granite": {"logits_scaling": 6.0, "embedding_multiplier": 12.0},
    "GraniteMoe": {"logits_scaling": 8.0},
    "FalconH1": {"lm_head_multiplier": 0.1, "num_hidden_layers": 1, **_MAMBA},
    "Gemma2": {"final_logit_softcapping": 3.0},
    "NanoChat": {"final_logit_softcapping": 2.0},
}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


def lm_of(family: str, **settings: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(_SIZES | settings))
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def wrapped(lm: PreTrainedModel) -> Backbone:
    return Backbone(lm, Lora(rank=2, alpha=2.0, dropout=0.0), ["compressor"], "a/folder")


def assert_as_its_own(lm: PreTrainedModel, size: float = 30.0) -> None:
    """Logits of the parts are those of the model, for large states too, where a cap matters."""
    backbone, ids_1L = wrapped(lm), torch.tensor([[5, 60, 33, 71]])
    with torch.no_grad():
        own = lm(input_ids=ids_1L).logits
        torch.testing.assert_close(backbone.logits(backbone.trunk(backbone.embed(ids_1L), Route())), own)
        head: nn.Linear = lm.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach() * size)  # a copy: tied embeddings stay
        own = lm(input_ids=ids_1L).logits
        torch.testing.assert_close(backbone.logits(backbone.trunk(backbone.embed(ids_1L), Route())), own)


@pytest.mark.parametrize("family", _SCALED)
def test_scales_and_caps_are_applied(family: str):
    lm = lm_of(family, **_SCALED[family])
    transform = wrapped(lm_of(family, **_SCALED[family])).output_transform
    assert transform.scale != 1 or transform.cap < 100
    assert_as_its_own(lm)


def test_a_cap_within_a_composite_configuration_is_found():
    text = _SIZES | {"final_logit_softcapping": 2.5, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    torch.manual_seed(0)
    config = transformers.Gemma4Config(text_config=text, vision_config=_VISION, audio_config=None, image_token_id=70)
    lm = transformers.Gemma4ForConditionalGeneration(config).eval()
    assert wrapped(copy.deepcopy(lm)).output_transform.cap == pytest.approx(2.5)
    assert_as_its_own(lm)


def test_models_without_either_compute_as_before(tiny_backbone: Path):
    lm = LlamaForCausalLM.from_pretrained(tiny_backbone)
    backbone, states = wrapped(lm), torch.randn(3, HIDDEN_SIZE)
    assert torch.equal(backbone.logits(states), lm.get_output_embeddings()(states).float())


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Gemma4", {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 90}),
        ("Gemma3n", {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 90}),
    ],
)
def test_embeddings_in_every_layer_are_refused(family: str, settings: dict[str, object]):
    module = {"Gemma4": "Gemma4Text", "Gemma3n": "Gemma3nText"}[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{module}Config")(**(_SIZES | {"num_kv_shared_layers": 0} | settings))
    with pytest.raises(InputError, match=r"a/folder: cannot be used as a backbone: .*; take another causal LM"):
        wrapped(getattr(transformers, f"{family}ForCausalLM")(config).eval())


def _replaced(change: Callable[[Any], None]) -> PreTrainedModel:
    lm = lm_of("Llama")
    change(lm)
    return lm


def _root(lm: Any) -> None:
    """Logits that are neither scaled nor capped, but something else."""
    forward = lm.forward

    def changed(*arguments: object, **named: object) -> object:
        output = forward(*arguments, **named)
        output.logits = output.logits.abs().sqrt()
        return output

    lm.forward = changed


def _both_ways(lm: Any) -> None:
    """States that depend on later positions."""
    lm.model.register_forward_hook(
        lambda _m, _i, output: output.__class__(
            last_hidden_state=output.last_hidden_state + output.last_hidden_state.mean(dim=1, keepdim=True)
        )
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [(_root, "otherwise than by a scale and a cap"), (_both_ways, "looks at later positions")],
)
def test_what_cannot_be_called_alone_is_refused_with_the_reason(change: Callable[[Any], None], reason: str):
    with pytest.raises(InputError, match=reason):
        wrapped(_replaced(change))


def test_a_layer_between_trunk_and_output_layer_is_refused():
    """As heads of masked language models have: a dense layer and a norm ahead of the vocabulary."""
    torch.manual_seed(0)
    small = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = transformers.BertConfig(**small, num_attention_heads=2, is_decoder=True, initializer_range=0.2)
    with pytest.raises(InputError, match="cannot be used as a backbone"):
        wrapped(transformers.BertLMHeadModel(config).eval())
