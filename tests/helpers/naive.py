"""The joint step written out, to compare gradients with."""

import torch
from torch import Tensor

from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.config.stages import Joint
from clara.model.joint_batch import JointBatch
from clara.model.lora import Route, routed
from clara.model.model import ClaraModel

Gradients = dict[str, Tensor]


def gradients(model: ClaraModel) -> Gradients:
    """Every parameter's gradient (zero where there is none) and leave none behind."""
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(got: Gradients, wanted: Gradients, tolerance: float = 1e-9) -> None:
    """Equal gradients, parameter by parameter, of which some are not zero."""
    assert got.keys() == wanted.keys()
    assert any(g.any() for g in wanted.values())
    for name in wanted:
        torch.testing.assert_close(
            got[name], wanted[name], atol=tolerance, rtol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def _pooled(model: ClaraModel, vectors_MD: Tensor, mean_MD: Tensor | None) -> Tensor:
    """What the score compares, of one question or row."""
    centred_MD = vectors_MD if mean_MD is None else vectors_MD - mean_MD
    return centred_MD.mean(dim=0) if model.settings.score.pooling == "slot_mean" else centred_MD.flatten()


def naive_joint_loss(model: ClaraModel, batch: JointBatch, settings: Joint) -> Tensor:
    """One question at a time, every candidate encoded in the step, softmax written out, the whole LM's logits."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row, prompt in enumerate(batch.prompts):
        query = model.encode([batch.questions[row]], QUERY_REASONER).memory[0]
        query = _pooled(model, query, model.question_mean.mean)
        fresh = [model.encode([text], COMPRESSOR).memory[0] for text in batch.candidates[row]]
        if not settings.train_compressor:
            fresh = [f.detach() for f in fresh]
        stored = [batch.memory[row, n] for n in range(len(fresh))]
        compared = [_pooled(model, m, batch.corpus_mean) for m in stored]
        scores = [query @ m / (query.norm() * m.norm()) for m in compared]
        order = sorted(range(len(fresh)), key=lambda n: -scores[n].item())[: settings.num_selected]
        slots = []
        for place, best in enumerate(order):
            free = [n for n in range(len(fresh)) if n not in order[:place]]
            mass = [(scores[n] / settings.temperature).exp() for n in free]
            soft = sum(m / sum(mass) * stored[n] for m, n in zip(mass, free, strict=True))
            slots.append((fresh[best] if settings.train_compressor else stored[best]) + soft - soft.detach())
        inputs_1LD, (front,) = model.inputs([prompt], [torch.stack(slots)])
        with routed(Route(GENERATOR)):
            log_probabilities = model.backbone.lm(inputs_embeds=inputs_1LD).logits[0].log_softmax(dim=-1)
        total = total - sum(log_probabilities[front - 1 + i, token] for i, token in enumerate(prompt.answer))
        tokens += len(prompt.answer)
    return total / tokens
