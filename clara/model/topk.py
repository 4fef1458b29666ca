"""Straight-through top-k: the forward value is the hard selection, the gradient that of successive softmaxes.

Shapes: B questions, N candidates, K selected.
"""

import torch
from torch import Tensor

from clara.errors import InputError


def slot_distributions(scores_BN: Tensor, indices_BK: Tensor, temperature: float, mask_epsilon: float = 0.0) -> Tensor:
    """Softmax over the candidates for each slot, with candidates selected by earlier slots masked out.

    Differs: the mask is a true −inf. The published one adds log(1e-8) to the logit, so that a candidate whose score
    leads by more than τ·ln 10⁸ (0.368 at τ = 0.02) is selected again.

    Args:
        scores_BN: cosines, or τ·z of a fused score (`clara.model.fusion`): the logits are these divided by τ.
        indices_BK: selected candidates, best first.
        temperature: τ.
        mask_epsilon: 1e-8 gives the published mask, for parity with it.

    Returns:
        `[B, K, N]`; each row sums to one.
    """
    num_selected = indices_BK.shape[1]
    selected_BKN = torch.nn.functional.one_hot(indices_BK, scores_BN.shape[1]).bool()
    taken_BKN = torch.cumsum(selected_BKN, dim=1).bool() & ~selected_BKN  # by an earlier slot
    logits_BKN = (scores_BN / temperature).unsqueeze(1).expand(-1, num_selected, -1)
    if mask_epsilon:
        return (logits_BKN + (1.0 - taken_BKN.to(logits_BKN.dtype) + mask_epsilon).log()).softmax(dim=-1)
    return logits_BKN.masked_fill(taken_BKN, float("-inf")).softmax(dim=-1)


def straight_through_topk(
    scores_BN: Tensor,
    num_selected: int,
    temperature: float,
    valid_BN: Tensor | None = None,
    *,
    mask_epsilon: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Select the best candidates with a surrogate gradient (Algorithm 1 of arXiv:2511.18659).

    Z = hard + p − stop_gradient(p), with p_j the softmax of slot j. With g_j = ∂L/∂Z[j] the gradient is
    ∂L/∂scores = (1/τ) Σ_j p_j ⊙ (g_j − ⟨p_j, g_j⟩).

    Args:
        scores_BN: see `slot_distributions`.
        num_selected: K.
        temperature: τ.
        valid_BN: false for padding, which is selected only if the pool has fewer than K candidates.
        mask_epsilon: see `slot_distributions`.

    Returns:
        Z `[B, K, N]`, whose forward value is the one-hot rows in order of descending score (ties: lower index first),
        and the indices `[B, K]`.

    Raises:
        InputError: K is larger than N.
    """
    num_candidates = scores_BN.shape[1]
    if num_selected > num_candidates:
        raise InputError(
            f"num_selected is {num_selected}, the pool holds {num_candidates} candidates: K of N needs K ≤ N; lower "
            "num_selected"
        )
    if valid_BN is not None:
        # Far below any cosine, but finite: in a pool of fewer than K candidates a row must not be −inf alone.
        scores_BN = scores_BN.masked_fill(~valid_BN, -1e4)
    indices_BK = torch.sort(scores_BN.detach(), dim=1, descending=True, stable=True).indices[:, :num_selected]
    hard_BKN = torch.nn.functional.one_hot(indices_BK, num_candidates).to(scores_BN.dtype)
    soft_BKN = slot_distributions(scores_BN, indices_BK, temperature, mask_epsilon)
    return hard_BKN + (soft_BKN - soft_BKN.detach()), indices_BK
