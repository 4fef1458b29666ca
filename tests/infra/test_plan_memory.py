"""The formula for a GPU's memory against torch's own tracker, on tensors without data: an unpartitioned step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig, LlamaForCausalLM

import clara.model.backbone as backbones
import clara.model.model as models
from clara.config.load import load
from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER, ROLES
from clara.config.tree import Config
from clara.model.backbone import Backbone
from clara.model.lora import LoraPair
from clara.model.model import ClaraModel
from clara.model.output_check import OutputTransform
from clara.model.slots import MemorySlots
from infra.plan import gpu_memory
from infra.plan.shape import Shape
from infra.plan.work import Lengths
from tests.helpers import tiny

QUESTION, CHUNK = 24, 128
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(autouse=True)
def _shapes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model looks at the numbers of its weights for is left out: there are none."""
    monkeypatch.setattr(backbones, "measure_output", lambda lm, name: OutputTransform())
    monkeypatch.setattr(backbones, "check", lambda *parts: None)
    monkeypatch.setattr(models, "MemorySlots", Slots)
    monkeypatch.setattr(LoraPair, "to", lambda pair, device: pair)  # they are on one device, and cannot be swapped


class Tracker(MemTracker):
    """Torch's tracker without its figures by module, which know no module that is called twice in a step."""

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> tuple[int, int]:
        # It would hook the gradients of frozen weights.
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        """Nothing: as the next three."""

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None: ...

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None: ...


class Slots(MemorySlots):
    """Memory tokens, markers and gate of the right shapes."""

    def __init__(self, num_memory_tokens: int, embedding_VD: Tensor) -> None:
        nn.Module.__init__(self)
        hidden = embedding_VD.shape[1]
        self.memory_tokens = nn.Parameter(torch.zeros(num_memory_tokens, hidden))
        self.markers = nn.Parameter(torch.zeros(2, hidden))
        self.gate = nn.Parameter(torch.zeros(num_memory_tokens))


def built(config: Config, shape: Shape, folder: Path) -> ClaraModel:
    lm = LlamaForCausalLM._from_config(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_size,
        ),
        dtype=getattr(torch, config.backbone.dtype),
    )
    backbone = Backbone(lm, config.model.lora, ROLES)
    if config.backbone.gradient_checkpointing:
        backbone.enable_checkpointing()
    return ClaraModel(backbone, tiny.write_tokenizer(folder), config.model, config.prompts)


def tracked(config: Config, shape: Shape, folder: Path) -> tuple[int, Lengths]:
    """Peak bytes of two steps of query reasoner, fresh encodings, generator and AdamW; and what they read."""
    joint = config.joint
    with FakeTensorMode():
        model = built(config, shape, folder)
        optimiser = torch.optim.AdamW(model.train_only([COMPRESSOR, QUERY_REASONER, GENERATOR]))
        prompts = [model.prompts.question("Who?", "x " * 8)] * joint.micro_batch
        tracker = Tracker()
        tracker.track_external(model, optimiser)
        with tracker:
            for _ in range(2):
                query = model.query([[5] * QUESTION] * joint.micro_batch, dropout=True)
                fresh = model.encode([[5] * CHUNK] * joint.micro_batch * joint.num_selected, COMPRESSOR, dropout=True)
                memories = list(fresh.memory.split(joint.num_selected))
                losses = model.answer_losses(prompts, memories, dropout=True)
                (losses.nll.sum() + query.sum()).backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        peak: int = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    around = len(prompts[0].left) + len(prompts[0].right) - QUESTION
    return peak, Lengths(CHUNK, QUESTION, len(prompts[0].answer), around)


@pytest.mark.parametrize(
    ("recomputed", "dtype"),
    [
        pytest.param(False, "float32", id="kept-float32"),
        pytest.param(True, "bfloat16", id="recomputed-bfloat16"),
        pytest.param(False, "bfloat16", id="kept-bfloat16", marks=pytest.mark.slow),
        pytest.param(True, "float32", id="recomputed-float32", marks=pytest.mark.slow),
    ],
)
def test_the_peak_of_an_unpartitioned_step(
    recomputed: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_memory, "MASK_BYTES", gpu_memory.DTYPE_BYTES[dtype])  # the tracker sees a CPU
    settings = ["joint.train_compressor=true", "joint.num_selected=3", "joint.micro_batch=2"]
    settings += [f"backbone.dtype={dtype}", f"backbone.gradient_checkpointing={str(recomputed).lower()}"]
    config, shape = load(None, settings), Shape(256, 2, 4, 2, 64, 704, 2000)
    peak, lengths = tracked(config, shape, tmp_path)
    parts = gpu_memory.per_gpu(config, shape, lengths, 1, 0)
    assert parts["total"] - parts["other, assumed"] == pytest.approx(peak, rel=0.15)
