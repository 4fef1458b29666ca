"""Part `parity` of `benchmarks.gpu`: a tiny model in float32 on a device, and the same on the CPU."""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import Save
from benchmarks.joint_step import chunks, words_of
from clara.config.load import load
from clara.config.roles import GENERATOR, QUERY_REASONER
from clara.config.tree import Config
from clara.data.records import input_text
from clara.model.checkpoint import check_device, fresh_model
from clara.model.model import ClaraModel
from clara.model.steps import JointBatch, JointStep
from pipelines.world.command import save_backbone
from training.loop.engine import LocalEngine

STEPS, ROWS, QUESTIONS, NEW_TOKENS = 20, 12, 4, 8
TOLERANCES = {"losses": 1e-3, "memory": 1e-3, "scores": 1e-3}
"""Largest difference: of a loss, relative; of a number of a memory and of a cosine, absolute."""
_SETTINGS = ("backbone.dtype=float32", "model.lora.dropout=0.0", "joint.num_candidates=6", "joint.num_selected=2")


def figures(model: ClaraModel, config: Config) -> dict[str, Any]:
    """What the model computes on its device, then the losses of joint steps with updates."""
    rng = random.Random(1)
    documents = [model.document_ids(input_text(c.title, c.text)) for c in chunks(model, ROWS, 40, rng)]
    questions = [words_of(model, rng, 12) for _ in range(QUESTIONS)]
    prompts = [model.prompts.question(q, words_of(model, rng, 4)) for q in questions]
    memory, query = model.compress(documents), model.encode_questions(questions)
    open_prompts = [model.prompts.question(q) for q in questions]
    tokens = model.generate_ids(open_prompts, [memory[:2]] * QUESTIONS, max_new_tokens=NEW_TOKENS)
    scores = torch.nn.functional.cosine_similarity(query.flatten(1)[:, None], memory.flatten(1)[None], dim=-1)
    pools = torch.tensor([rng.sample(range(ROWS), config.joint.num_candidates) for _ in range(QUESTIONS)])
    pool_memory = memory[pools.to(memory.device)]
    valid = torch.ones(pools.shape, dtype=torch.bool, device=memory.device)
    asked = [model.question_ids(q) for q in questions]
    batch = JointBatch(asked, prompts, pool_memory, valid, torch.zeros_like(valid))
    model.train_only([QUERY_REASONER, GENERATOR])
    groups = [(1e-3, model.role_parameters(role)) for role in (QUERY_REASONER, GENERATOR)]
    engine, losses = LocalEngine(JointStep(model, config.joint), groups, config.joint.optimiser), []
    for _ in range(STEPS):
        output = engine.forward(batch, batch.weight, QUESTIONS)
        engine.backward(output.loss, last=True)
        engine.update([1.0, 1.0])
        losses.append(float(output.loss.detach()))
    return {"losses": losses, "memory": memory.cpu(), "scores": scores.cpu(), "tokens": tokens}


def compared(there: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """Largest differences, whether the tokens are equal, and whether all is within `TOLERANCES`."""
    losses = zip(there["losses"], here["losses"], strict=True)
    found = {"losses": max(abs(a - b) / max(abs(b), 1e-6) for a, b in losses)}
    found |= {name: float((there[name] - here[name]).abs().max()) for name in ("memory", "scores")}
    equal = there["tokens"] == here["tokens"]
    within = equal and all(found[name] <= most for name, most in TOLERANCES.items())
    return {"differences": found, "tokens_equal": equal, "within": within, "tolerances": TOLERANCES}


def measure(name: str, device: str, tiny: bool, save: Save) -> dict[str, Any]:
    """See `benchmarks.gpu`; the shapes are tiny in any case.

    Raises:
        InputError: the device is not there.
    """
    check_device(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(Path(folder), 0)
        config = load(None, [*_SETTINGS, f"backbone.path={folder}"])
        model = fresh_model(config)
        with torch.no_grad():
            for layer in model.backbone.layers.values():
                for pair in layer.adapters.values():
                    torch.nn.init.normal_(pair.lora_B, std=0.05)  # untrained adapters compute nothing
        other = fresh_model(config)
        other.load_state_dict(model.state_dict())
        there = figures(other.to(device), config)
        here = figures(model, config)
    return compared(there, here) | {"losses": {device: there["losses"], "cpu": here["losses"]}}
