"""The fused score: z = a · cosine/τ + Σ_f w_f · feature_f, logits of a softmax over candidates.

A feature is the score that another ranker gives to a row: BM25's, or the similarity of dense vectors. Every candidate
has every feature, whoever found it. With (a, w) = (1, 0) z is cosine/τ, the published form (Eq. 3.1 and 3.2 of
arXiv:2511.18659).

The code passes s = τ·z on: what selects and what trains divides by τ, and s of the published form is the cosine itself.

Shapes: B questions, N candidates, F features in the order of `Fusion.features`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clara.config.model import FeatureName, Fusion
from clara.errors import InputError

PUBLISHED = Fusion()
"""The score of the paper: the cosine alone."""


def fused(cosine_BN: Tensor, features_BNF: Tensor | None, fusion: Fusion) -> Tensor:
    """Scores s = τ·z `[B, N]` of candidates.

    Args:
        cosine_BN: as returned by `clara.model.geometry.cosine`.
        features_BNF: of the candidates; None where the score has no feature with a weight.
        fusion: the weights.

    Raises:
        InputError: the number of features is not that of the weights.
    """
    weights = list(fusion.features.values())
    found = 0 if features_BNF is None else features_BNF.shape[-1]
    if found != len(weights):
        raise InputError(f"{found} features of candidates; the score has weights for {list(fusion.features)}")
    if fusion.published:
        return cosine_BN
    return weigh(cosine_BN, features_BNF, torch.tensor([fusion.a, *weights]), fusion.temperature)


def weigh(cosine_BN: Tensor, features_BNF: Tensor | None, weights: Tensor, temperature: float) -> Tensor:
    """`fused` with weights `[1 + F]` as a tensor, to which a gradient may flow: a, then those of the features."""
    weights = weights.to(cosine_BN)
    scores_BN = weights[0] * cosine_BN
    if features_BNF is not None:
        scores_BN = scores_BN + temperature * (features_BNF.to(cosine_BN) @ weights[1:])
    return scores_BN


def contributions(
    cosine_N: Sequence[float], features: Mapping[FeatureName, Sequence[float]], fusion: Fusion
) -> list[dict[FeatureName, float]]:
    """What the memory and each feature add to z of each of N rows; those with a weight of 0 are left out."""
    parts: dict[FeatureName, list[float]] = {}
    if fusion.a:
        parts["memory"] = [fusion.a * value / fusion.temperature for value in cosine_N]
    parts |= {name: [weight * value for value in features[name]] for name, weight in fusion.features.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
