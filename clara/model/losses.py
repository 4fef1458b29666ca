"""Losses of the three stages, as functions of tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clara.model.precision import widened

_NO_MASS = -1e4  # far below any logit, but finite: 0 · (−inf) is not a number


@dataclass(frozen=True)
class AnswerLosses:
    """Negative log-likelihood of each answer token `[T]`, its weight `[T]`, and the row that it belongs to `[T]`."""

    nll: Tensor
    weight: Tensor
    row: Tensor
    num_rows: int

    def per_row(self) -> Tensor:
        """Sum over each row's answer tokens `[B]`, unweighted."""
        return self.nll.new_zeros(self.num_rows).index_add(0, self.row, self.nll)


def state_mse(memory_mean_BD: Tensor, document_mean_BD: Tensor) -> Tensor:
    """Squared difference of the mean memory state and the mean document state, mean over batch and D.

    Differs: Eq. 2.1 of arXiv:2511.18659 sums over D; its λ = 0.1 belongs to this mean, as the reference computes it.
    """
    return torch.nn.functional.mse_loss(widened(memory_mean_BD), widened(document_mean_BD))


def info_nce(
    scores_BN: Tensor,
    positive_BN: Tensor,
    temperature: float,
    valid_BN: Tensor | None = None,
    unread_B: Tensor | None = None,
) -> Tensor:
    """Multi-positive InfoNCE: logsumexp over all candidates minus that over the positives.

    Averaged over the questions that have a positive.

    Args:
        scores_BN: of the candidates.
        positive_BN: which of them are positives.
        temperature: τ.
        valid_BN: false where a pool has fewer than N.
        unread_B: log of the sum of exp(z) over further rows, none of which is a positive; None: there are none.

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
    positives_BN = logits_BN[has_B].masked_fill(~positive_BN[has_B], float("-inf"))
    return (with_unread(logits_BN, unread_B)[has_B].logsumexp(dim=1) - positives_BN.logsumexp(dim=1)).mean()


def utility_divergence(
    scores_BN: Tensor,
    log_likelihood_BN: Tensor,
    temperature: float,
    utility_temperature: float,
    valid_BN: Tensor | None = None,
    *,
    without_B: Tensor | None = None,
    unread_B: Tensor | None = None,
) -> Tensor:
    """KL from a target distribution over the candidates, by how likely each makes the answer, to that of the scores.

    The target is the softmax of each candidate's own answer log-likelihood (perplexity distillation of Atlas,
    arXiv:2208.03299), or, with `without_B`, the mass of `log_mass`: rows that help less than nothing have none.

    Args:
        scores_BN: of the candidates.
        log_likelihood_BN: of the answer given each candidate alone; constants.
        temperature: τ of the scores.
        utility_temperature: τ_u, nats.
        valid_BN: false where a pool has fewer than N.
        without_B: log-likelihood of the answer given no document. A question that no candidate helps counts as 0.
        unread_B: log of the sum of exp(z) over further rows, which have no mass in the target; None: there are none.

    Returns:
        A scalar, the mean over questions.
    """
    logits_BN = widened(scores_BN) / temperature
    target_BN = widened(log_likelihood_BN.detach()) / utility_temperature
    if without_B is not None:
        target_BN = log_mass(widened(log_likelihood_BN.detach()) - without_B[:, None], utility_temperature)
        target_BN = target_BN.clamp(min=_NO_MASS)
    if valid_BN is not None:
        logits_BN = logits_BN.masked_fill(~valid_BN, _NO_MASS)
        target_BN = target_BN.masked_fill(~valid_BN, _NO_MASS)
    if unread_B is not None:
        target_BN = torch.nn.functional.pad(target_BN, (0, 1), value=_NO_MASS)
    logits_BN, count = with_unread(logits_BN, unread_B), len(logits_BN)
    if without_B is not None:
        helped_B = (target_BN > _NO_MASS).any(dim=1)
        logits_BN, target_BN = logits_BN[helped_B], target_BN[helped_B]
    divergence = torch.nn.functional.kl_div(
        logits_BN.log_softmax(dim=1), target_BN.log_softmax(dim=1), log_target=True, reduction="sum"
    )
    return divergence / count


def log_mass(utilities: Tensor, temperature: float) -> Tensor:
    """log(exp(u/τ_u) − 1) of utilities, elementwise; −inf where a row helps no more than nothing.

    Computed so that a utility of hundreds of nats does not overflow. The softmax over a question's rows is their target
    distribution.

    Args:
        utilities: log-likelihood of the answer given a row alone, minus that given no document, nats.
        temperature: τ_u, nats.
    """
    exponent = (utilities / temperature).clamp(min=0)
    return exponent + torch.log(-torch.expm1(-exponent))


def with_unread(logits_BN: Tensor, unread_B: Tensor | None) -> Tensor:
    """Logits `[B, N + 1]`: of the candidates, and of all further rows together; `[B, N]` without any."""
    if unread_B is None:
        return logits_BN
    return torch.cat([logits_BN, unread_B[:, None].to(logits_BN.dtype).clamp(min=_NO_MASS)], dim=1)
