"""Routed adapters: parity with PEFT, the route's extent, and files that are damaged."""

import threading
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from clara.config.model import Lora
from clara.config.roles import ROLES
from clara.errors import InputError
from clara.model import lora
from clara.model.backbone import Backbone
from clara.model.checkpoint import save_checkpoint
from clara.model.lora import Route, current_route, routed
from clara.model.model import ClaraModel
from tests.helpers import tiny


def test_without_an_adapter_the_trunk_is_the_plain_lm(tiny_model: ClaraModel, tiny_backbone: Path):
    ids = torch.arange(3, 40)[None]
    plain = AutoModelForCausalLM.from_pretrained(tiny_backbone, dtype=torch.float32)
    with torch.no_grad():
        hidden = tiny_model.backbone.trunk(tiny_model.backbone.embed(ids), Route(None))
        assert torch.equal(hidden, plain.model(ids).last_hidden_state)
        torch.testing.assert_close(tiny_model.backbone.logits(hidden), plain(ids).logits)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3", "gpt2"])
@pytest.mark.parametrize("role", ROLES)
def test_adapters_load_in_peft_and_give_the_same_states(tmp_path: Path, family: str, role: str):
    folder = tiny.write_backbone(tmp_path / family, family)
    model = tiny.build_model(folder)
    save_checkpoint(model, tmp_path / "checkpoint", stage="pretrain", recipe={})
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain = base.get_decoder()(ids).last_hidden_state
        ours = model.backbone.trunk(model.backbone.embed(ids), Route(role))
        theirs = (
            PeftModel.from_pretrained(base, tmp_path / "checkpoint" / role)
            .eval()
            .get_base_model()
            .get_decoder()(ids)
            .last_hidden_state
        )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - plain).abs().max() > 0.01


def test_the_route_ends_with_its_context_even_after_an_error():
    def fail() -> None:
        with routed(Route("compressor")):
            assert current_route() == Route("compressor")
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert current_route() == Route()


def test_the_route_of_one_thread_is_not_seen_by_another():
    seen = []
    with routed(Route("generator", True)):
        thread = threading.Thread(target=lambda: seen.append(current_route()))
        thread.start()
        thread.join()
    assert seen == [Route()]


def test_a_fresh_adapter_changes_nothing_and_a_copy_equals_its_source(tiny_model: ClaraModel):
    layers, backbone = tiny_model.backbone.layers, tiny_model.backbone
    embedded = backbone.embed(torch.arange(3, 20)[None])
    with torch.no_grad():
        backbone.add_adapter("fresh")
        assert torch.equal(backbone.trunk(embedded, Route("fresh")), backbone.trunk(embedded, Route(None)))
        lora.copy_adapter(layers, "compressor", "query_reasoner")
        assert torch.equal(
            backbone.trunk(embedded, Route("query_reasoner")), backbone.trunk(embedded, Route("compressor"))
        )
    shared = {id(p) for p in lora.parameters(layers, "compressor")} & {
        id(p) for p in lora.parameters(layers, "query_reasoner")
    }
    assert not shared


def test_dropout_is_on_only_in_passes_that_ask_for_it(tiny_backbone: Path):
    model = tiny.build_model(tiny_backbone, lora={"rank": 4, "alpha": 8.0, "dropout": 0.5})
    embedded = model.backbone.embed(torch.arange(3, 20)[None])
    model.train()
    with torch.no_grad():
        still = [model.backbone.trunk(embedded, Route("compressor")) for _ in range(2)]
        noisy = [model.backbone.trunk(embedded, Route("compressor", dropout=True)) for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*noisy)


def test_every_linear_layer_of_the_trunk_is_adapted_and_the_head_is_not(tiny_model: ClaraModel):
    names = {name.rpartition(".")[2] for name in tiny_model.backbone.layers}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(tiny_model.backbone.layers) == 7 * tiny.NUM_LAYERS
    assert isinstance(tiny_model.backbone.lm.get_output_embeddings(), torch.nn.Linear)


def test_V12_number_of_parameters(tiny_model: ClaraModel):
    """Rank times inputs plus outputs of each layer, which gives 41,943,040 for the published 7B model at rank 16."""

    def count(hidden: int, kv: int, mlp: int, layers: int, rank: int) -> int:
        return layers * rank * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + mlp))

    assert count(4096, 1024, 14336, 32, 16) == 41_943_040
    found = sum(p.numel() for p in tiny_model.role_parameters("compressor"))
    assert found == count(tiny.HIDDEN_SIZE, tiny.HIDDEN_SIZE // 2, 48, tiny.NUM_LAYERS, 4)


def test_a_model_without_linear_layers_is_an_error():
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=0, n_head=2))
    with pytest.raises(InputError, match="no linear layer"):
        Backbone(lm, Lora(rank=2, alpha=4.0, dropout=0.0), ROLES)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "1 tensors missing"),
        ("extra", "1 unknown"),
        ("shape", "another backbone or rank"),
        ("cut", "not readable"),
        ("gone", "not readable"),
    ],
)
def test_a_damaged_adapter_is_an_error_that_names_the_file(
    tiny_model: ClaraModel, tmp_path: Path, damage: str, message: str
):
    backbone = tiny_model.backbone
    lora.save_adapter(
        backbone.layers,
        "compressor",
        tmp_path,
        Lora(rank=4, alpha=8, dropout=0),
        trunk_path=backbone.trunk_path,
        base="",
        dtype=torch.float32,
    )
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if damage == "missing":
        del tensors[first]
    elif damage == "extra":
        tensors["base_model.model.other.lora_A.weight"] = torch.zeros(1)
    elif damage == "shape":
        tensors[first] = tensors[first][:2].contiguous()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "gone":
        path.unlink()
    else:
        save_file(tensors, path)
    before = {k: v.clone() for k, v in lora.adapter_tensors(backbone.layers, "compressor", backbone.trunk_path).items()}
    with pytest.raises(InputError, match=f"adapter_model.safetensors.*{message}"):
        lora.load_adapter(backbone.layers, "compressor", tmp_path, trunk_path=backbone.trunk_path)
    assert all(
        torch.equal(before[k], v)
        for k, v in lora.adapter_tensors(backbone.layers, "compressor", backbone.trunk_path).items()
    )
