"""The fused score: the published form, the closed form, and its gradient."""

import pytest
import torch
from pydantic import ValidationError

from clara.config.model import FeatureName, Fusion
from clara.errors import InputError
from clara.model.fusion import contributions, fused, weigh
from clara.model.topk import slot_distributions, straight_through_topk

BOTH = Fusion(weights={"memory": 0.5, "bm25": 0.25, "dense": 3.0}, temperature=0.1, dense_model="a")


def candidates() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(3, 7) * 2 - 1, torch.rand(3, 7, 2) * 8


def test_the_published_form_is_the_cosine_bit_for_bit() -> None:
    cosine, _ = candidates()
    assert fused(cosine, None, Fusion()) is cosine
    assert torch.equal(weigh(cosine, torch.rand(3, 7, 2), torch.tensor([1.0, 0.0, 0.0]), 0.02), cosine)


def test_z_is_the_weighted_sum() -> None:
    cosine, features = candidates()
    z = 0.5 * cosine / 0.1 + 0.25 * features[..., 0] + 3.0 * features[..., 1]
    torch.testing.assert_close(fused(cosine, features, BOTH) / 0.1, z)


def test_without_the_memory_the_features_alone_rank() -> None:
    cosine, features = candidates()
    words = Fusion(weights={"bm25": 2.0})
    order = fused(cosine, features[..., :1], words).argsort(dim=1, descending=True)
    assert torch.equal(order, features[..., 0].argsort(dim=1, descending=True))


def test_top_k_takes_the_best_by_z_and_its_slots_are_softmaxes_of_z() -> None:
    cosine, features = candidates()
    scores = fused(cosine, features, BOTH)
    selected, indices = straight_through_topk(scores, 3, 0.1)
    z = 0.5 * cosine / 0.1 + 0.25 * features[..., 0] + 3.0 * features[..., 1]
    assert torch.equal(indices, z.argsort(dim=1, descending=True, stable=True)[:, :3])
    assert torch.equal(selected.argmax(dim=2), indices)
    torch.testing.assert_close(slot_distributions(scores, indices, 0.1)[:, 0], z.softmax(dim=1))


def test_the_gradient_reaches_the_cosine_through_a_over_tau_and_the_weights_through_the_features() -> None:
    cosine, features = candidates()
    cosine, features = cosine.double().requires_grad_(), features.double()
    weights = torch.tensor([0.5, 0.25, 3.0], dtype=torch.float64, requires_grad=True)
    upstream = torch.rand(3, 2, 7, dtype=torch.float64)
    scores = weigh(cosine, features, weights, 0.1)
    scores.retain_grad()
    selected, _ = straight_through_topk(scores, 2, 0.1)
    (selected * upstream).sum().backward()
    assert scores.grad is not None
    assert cosine.grad is not None
    assert weights.grad is not None
    by_z = scores.grad * 0.1  # s = τ·z
    torch.testing.assert_close(cosine.grad, by_z * 0.5 / 0.1)
    torch.testing.assert_close(weights.grad[0], (by_z * cosine.detach() / 0.1).sum())
    torch.testing.assert_close(weights.grad[1:], (by_z[..., None] * features).sum(dim=(0, 1)))
    # By finite differences of the soft selection, which is what the surrogate is the gradient of.
    _, indices = straight_through_topk(scores.detach(), 2, 0.1)

    def surrogate(values: torch.Tensor) -> torch.Tensor:
        soft = slot_distributions(weigh(cosine.detach(), features, values, 0.1), indices, 0.1)
        return (soft * upstream).sum()

    for number in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[number] = 1e-6
        slope = (surrogate(weights.detach() + step) - surrogate(weights.detach() - step)) / 2e-6
        torch.testing.assert_close(weights.grad[number], slope, rtol=1e-5, atol=1e-7)


def test_contributions_sum_to_z() -> None:
    cosine, features = candidates()
    by_name = {"bm25": features[0, :, 0].tolist(), "dense": features[0, :, 1].tolist()}
    parts = contributions(cosine[0].tolist(), by_name, BOTH)
    z = fused(cosine, features, BOTH)[0] / 0.1
    assert [sum(of.values()) for of in parts] == pytest.approx(z.tolist(), rel=1e-5)
    assert set(parts[0]) == {"memory", "bm25", "dense"}
    assert set(contributions([], by_name, Fusion(weights={"bm25": 1.0}))[0]) == {"bm25"}


def test_features_must_be_those_of_the_weights() -> None:
    cosine, features = candidates()
    with pytest.raises(InputError, match=r"1 features of candidates; the score has weights for \['bm25', 'dense'\]"):
        fused(cosine, features[..., :1], BOTH)
    with pytest.raises(InputError, match=r"2 features of candidates; the score has weights for \[\]"):
        fused(cosine, features, Fusion())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"memory": 0.0}, "all 0"),
        ({"bm25": -1.0}, "greater than or equal to 0"),
        ({"bm25": float("nan")}, "finite"),
        ({"memory": float("inf")}, "finite"),
        ({"words": 1.0}, "bm25"),
        ({"dense": 1.0}, "dense_model is empty"),
    ],
)
def test_weights_that_are_none_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Fusion.model_validate({"weights": weights})


@pytest.mark.parametrize(
    ("weights", "temperature"),
    [({"memory": 1e39}, 0.02), ({"bm25": 2e9}, 0.02), ({"memory": 1e-300}, 0.02), ({"memory": 1.0}, 1e-300)]
    + [({"memory": 1.0}, 1e300), ({"memory": 1.0}, float("inf")), ({"memory": float("nan")}, 0.02)],
)
def test_what_float32_cannot_hold_is_refused(weights: dict[FeatureName, float], temperature: float) -> None:
    with pytest.raises(ValueError, match=r"less than or equal|greater than or equal|all 0|finite"):
        Fusion(weights=weights, temperature=temperature)


def test_the_largest_logits_are_finite() -> None:
    extreme = Fusion(weights={"memory": 1e9, "bm25": 1e9}, temperature=1e-6)
    scores = fused(torch.ones(1, 2), torch.full((1, 2, 1), 1e4), extreme)
    assert (scores / extreme.temperature).isfinite().all()
    extreme = Fusion(weights={"memory": 1e-19}, temperature=1e6)
    assert (fused(torch.ones(1, 2), None, extreme) / extreme.temperature > 0).all()
