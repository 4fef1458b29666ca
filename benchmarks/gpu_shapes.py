"""Parts `1b` and `7b` of `benchmarks.gpu`: speed and memory at published shapes, with random weights."""

import importlib.util
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu import Save
from benchmarks.joint_step import words_of
from clara.config.load import load
from clara.config.roles import GENERATOR, QUERY_REASONER, ROLES
from clara.config.tree import Config
from clara.model.backbone import Backbone
from clara.model.backbone_files import load_tokenizer
from clara.model.checkpoint import check_device
from clara.model.model import ClaraModel
from clara.model.steps import JointBatch, JointStep
from infra.plan import work
from infra.plan.machines import peak_of
from infra.plan.shape import SHAPES, Shape
from pipelines.world.command import save_backbone
from training.loop.engine import LocalEngine

TINY = Shape(64, 2, 4, 2, 16, 128, 512)
_NAMES = {"1b": "llama-3.2-1b", "7b": "mistral-7b"}
_CONTEXT, _COMPILATIONS = 4096, 64


@dataclass(frozen=True)
class Case:
    """An attention kernel (of torch's SDPA, or the package flash_attn), and whether the trunk is compiled."""

    attention: str
    compiled: bool = False

    @property
    def name(self) -> str:
        """Of the case in the results."""
        return f"{self.attention}, compiled" if self.compiled else self.attention

    def kernel(self) -> AbstractContextManager[Any]:
        """Restricts torch's SDPA to the case's kernel."""
        backends = {"sdpa flash": SDPBackend.FLASH_ATTENTION, "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION}
        backend = backends.get(self.attention)
        return sdpa_kernel(backend) if backend is not None else nullcontext()


CASES = (
    Case("sdpa"),
    Case("sdpa flash"),
    Case("sdpa efficient"),
    Case("flash_attention_2"),
    Case("sdpa", compiled=True),
)


@dataclass(frozen=True)
class Sizes:
    """Chunks and questions of a pass, tokens of a chunk, and passes that count."""

    chunks: int
    questions: int
    chunk_tokens: int
    repeats: int


FULL, SMALL = Sizes(32, 8, 256, 5), Sizes(2, 2, 16, 1)


def build(shape: Shape, config: Config, device: str) -> ClaraModel:
    """A model of a shape with random weights, made on its device."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    described = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    dtype = getattr(torch, config.backbone.dtype)
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(described, dtype=dtype, attn_implementation="sdpa")
    backbone = Backbone(lm, config.model.lora, ROLES)
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(Path(folder), 0)
        tokenizer = load_tokenizer(folder)
    return ClaraModel(backbone, tokenizer, config.model, config.prompts).to(device)


def timed(work_once: Callable[[], object], device: str, repeats: int) -> dict[str, float]:
    """Seconds of the first pass and the median of those after it, and the peak of the device's memory."""
    on_gpu = torch.device(device).type == "cuda"

    def once() -> float:
        began = time.perf_counter()
        work_once()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    first = once()
    seconds = statistics.median(once() for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {"first_seconds": first, "seconds": seconds, "peak_bytes": float(peak)}


class Trial:
    """A model with the two passes that are measured."""

    def __init__(self, shape: Shape, config: Config, sizes: Sizes, device: str) -> None:
        """Build the model and draw texts, questions and pools."""
        self.model = build(shape, config, device)
        self._shape, self._config, self._sizes, self._device = shape, config, sizes, device
        rng, num = random.Random(0), sizes.questions
        highest = min(shape.vocabulary, len(self.model.tokenizer)) - 1
        self._texts = [[rng.randint(0, highest) for _ in range(sizes.chunk_tokens)] for _ in range(sizes.chunks)]
        questions = [words_of(self.model, rng, 20) for _ in range(num)]
        prompts = [self.model.prompts.question(q, words_of(self.model, rng, 6)) for q in questions]
        asked = [self.model.question_ids(q) for q in questions]
        pool = (num, config.joint.num_candidates)
        memory = torch.randn(*pool, self.model.num_memory_tokens, self.model.hidden_size, device=device)
        valid = torch.ones(pool, dtype=torch.bool, device=device)
        self._batch = JointBatch(asked, prompts, memory, valid, torch.zeros_like(valid))
        self.model.train_only([QUERY_REASONER, GENERATOR])
        groups = [(1e-4, self.model.role_parameters(role)) for role in (QUERY_REASONER, GENERATOR)]
        self._engine = LocalEngine(JointStep(self.model, config.joint), groups, config.joint.optimiser)
        prompt = statistics.mean(len(p.left) + len(p.right) for p in prompts) - statistics.mean(map(len, asked))
        answer = statistics.mean(len(p.answer) for p in prompts)
        self._lengths = work.Lengths(sizes.chunk_tokens, statistics.mean(map(len, asked)), answer, prompt)

    def _step(self) -> None:
        output = self._engine.forward(self._batch, self._batch.weight, self._sizes.questions)
        self._engine.backward(output.loss, last=True)
        self._engine.update([1.0, 1.0])

    def measured(self, peak: float | None) -> dict[str, Any]:
        """Compression and joint step; `peak` is the device's operations a second, None: not known."""
        config, shape, lengths, sizes = self._config, self._shape, self._lengths, self._sizes
        slots = self.model.num_memory_tokens
        read = work.encoded_length(lengths.question, slots) + work.prompt_length(config, lengths)
        passes = {
            "compression": (
                lambda: self.model.compress(self._texts),
                sizes.chunks * work.compression(config, shape, lengths),
                float(sizes.chunks * sizes.chunk_tokens),
            ),
            "joint_step": (
                self._step,
                sizes.questions * work.joint_question(config, shape, lengths),
                sizes.questions * read,
            ),
        }
        found = {}
        for name, (once, operations, tokens) in passes.items():
            of: dict[str, Any] = timed(once, self._device, sizes.repeats)
            rate = operations / of["seconds"]
            found[name] = of | {
                "tokens_per_second": tokens / of["seconds"],
                "operations_per_second": rate,
                "share_of_peak": rate / peak if peak else None,
            }
        return found

    def attend(self, attention: str) -> None:
        """Switch the implementation that transformers calls."""
        self.model.backbone.lm.set_attn_implementation(attention)

    def compile(self, backend: str) -> None:
        """Compile the trunk; there is no way back. Each shape of a linear layer is compiled by itself."""
        torch._dynamo.config.recompile_limit = _COMPILATIONS
        self.model.backbone.lm.get_decoder().compile(backend=backend)


def measure(name: str, device: str, tiny: bool, save: Save) -> dict[str, Any]:
    """See `benchmarks.gpu`. A case that fails has the reason in its place: the others count.

    Raises:
        InputError: the device is not there.
    """
    check_device(device)
    shape, sizes = (TINY, SMALL) if tiny else (SHAPES[_NAMES[name]], FULL)
    dtype = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    config = load(None, [f"backbone.dtype={dtype}", "model.lora.dropout=0.0"])
    peak = peak_of(torch.cuda.get_device_name()) if torch.device(device).type == "cuda" else None
    trial = Trial(shape, config, sizes, device)
    found: dict[str, Any] = {"shape": "tiny" if tiny else _NAMES[name], "dtype": dtype, "sizes": vars(sizes)}
    found |= {"parameters": shape.num_parameters, "peak_operations_per_second": peak, "cases": {}}
    for case in CASES:
        try:
            found["cases"][case.name] = _one(trial, case, peak, tiny)
        except Exception as error:  # kernels and compilers refuse in their own ways, and the next case must be measured
            found["cases"][case.name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        save(found)
    return found


def _one(trial: Trial, case: Case, peak: float | None, tiny: bool) -> dict[str, Any]:
    if case.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        return {"failed": "the package flash_attn is not installed"}
    trial.attend("flash_attention_2" if case.attention == "flash_attention_2" else "sdpa")
    if case.compiled:
        trial.compile("eager" if tiny else "inductor")
    with case.kernel():
        return trial.measured(peak)
