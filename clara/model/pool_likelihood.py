"""Likelihood of one answer to one question, given each of several memories: the LM reads what is common once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clara.config.roles import GENERATOR
from clara.model.lora import Route
from clara.model.model import ClaraModel


@torch.no_grad()
def log_likelihoods_of_each(model: ClaraModel, question: str, answer: str, memories: Sequence[Tensor]) -> Tensor:
    """Log-likelihood of an answer, summed over its tokens, given each of B lists of memories, nats `[B]`.

    The same as `ClaraModel.answer_log_likelihood` up to rounding, but the tokens in front of the documents pass the LM
    once for all B, not once for each.

    Args:
        model: whose generator reads.
        question: to be answered.
        answer: to be scored.
        memories: a `[k, M, D]` for each; k may be 0.
    """
    prompt = model.prompts.question(question, answer)
    inputs_BLD, fronts = model.inputs([prompt] * len(memories), memories)
    num_shared = len(prompt.left)
    hidden_BLD = model.backbone.trunk_after(
        inputs_BLD[:1, :num_shared], inputs_BLD[:, num_shared:], Route(GENERATOR, dropout=False)
    )
    first_B1 = torch.tensor(fronts, device=hidden_BLD.device)[:, None] - num_shared - 1
    places_BT = first_B1 + torch.arange(len(prompt.answer), device=hidden_BLD.device)
    logits_BTV = model.backbone.logits(hidden_BLD.gather(1, places_BT[..., None].expand(-1, -1, hidden_BLD.shape[2])))
    targets_BT = torch.tensor(prompt.answer, device=hidden_BLD.device).expand(len(memories), -1)
    nats_BT = nn.functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
    return -nats_BT.sum(dim=1)
