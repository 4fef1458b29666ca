"""Losses of the three stages, as functions of tensors."""

import torch
from torch import Tensor

from clara.model.precision import widened


def state_mse(memory_mean_BD: Tensor, document_mean_BD: Tensor) -> Tensor:
    """Squared difference of the mean memory state and the mean document state, mean over batch and D.

    Differs: Eq. 2.1 of arXiv:2511.18659 sums over D; its λ = 0.1 belongs to this mean, as the reference computes it.
    """
    return torch.nn.functional.mse_loss(widened(memory_mean_BD), widened(document_mean_BD))


def info_nce(scores_BN: Tensor, positive_BN: Tensor, temperature: float, valid_BN: Tensor | None = None) -> Tensor:
    """Multi-positive InfoNCE: logsumexp over all candidates minus that over the positives.

    Averaged over the questions that have a positive.

    Returns:
        A scalar; zero (with a gradient of zero) when no question has a positive.
    """
    logits_BN = widened(scores_BN) / temperature
    if valid_BN is not None:
        logits_BN = logits_BN.masked_fill(~valid_BN, float("-inf"))
        positive_BN = positive_BN & valid_BN
    has_B = positive_BN.any(dim=1)
    if not bool(has_B.any()):
        return scores_BN.sum() * 0.0
    logits_BN = logits_BN[has_B]
    positives_BN = logits_BN.masked_fill(~positive_BN[has_B], float("-inf"))
    return (logits_BN.logsumexp(dim=1) - positives_BN.logsumexp(dim=1)).mean()


def utility_divergence(
    scores_BN: Tensor,
    log_likelihood_BN: Tensor,
    temperature: float,
    utility_temperature: float,
    valid_BN: Tensor | None = None,
) -> Tensor:
    """KL from the softmax of each candidate's own answer log-likelihood to that of the scores.

    Perplexity distillation of Atlas, arXiv:2208.03299.

    The likelihoods are constants. Returns a scalar, the mean over questions.
    """
    logits_BN = widened(scores_BN) / temperature
    target_BN = widened(log_likelihood_BN.detach()) / utility_temperature
    if valid_BN is not None:
        logits_BN = logits_BN.masked_fill(~valid_BN, -1e4)
        target_BN = target_BN.masked_fill(~valid_BN, -1e4)
    return torch.nn.functional.kl_div(
        logits_BN.log_softmax(dim=1), target_BN.log_softmax(dim=1), log_target=True, reduction="batchmean"
    )
