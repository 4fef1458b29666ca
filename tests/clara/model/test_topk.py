"""Straight-through top-k and the score: closed forms, the documented gradient, a brute-force twin."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clara.errors import InputError
from clara.model.geometry import cosine
from clara.model.topk import slot_distributions, straight_through_topk
from tests.helpers.fuzz import examples

# scores, K, τ, indices, slot distributions, gradient of ⟨Z, G⟩ with G = 1, 2, 3 … row by row. Where the published mask
# leaks (row 3, and row 4 by the little that its lead leaves), the numbers are those of a true −inf mask.
V1 = [
    pytest.param(
        [0.1, 0.4, 0.3, 0.2],
        2,
        1.0,
        [1, 2],
        [[0.213838, 0.288651, 0.261183, 0.236328], [0.300610, 0, 0.367165, 0.332225]],
        [-0.845391, -0.150099, 0.224133, 0.771357],
        id="V1-row-1",
    ),
    pytest.param(
        [0.50, 0.52, 0.48, 0.10],
        2,
        0.02,
        [1, 0],
        [[0.244728, 0.665241, 0.090031, 0], [0.731059, 0, 0.268941, 0]],
        [-30.004686, 5.145569, 24.859095, 2.4e-7],
        id="V1-row-2",
    ),
    pytest.param(
        [0.90, 0.50, 0.45, 0.40],
        2,
        0.02,
        [0, 1],
        [[1, 0, 0, 0], [0, 0.918423, 0.075389, 0.006188]],
        [-0.0, -4.030284, 3.438612, 0.591673],
        id="V1-row-3-correct-mask",
    ),
    pytest.param(
        [0.80, 0.50, 0.45, 0.40],
        2,
        0.02,
        [0, 1],
        [[1, 0, 0, 0], [0, 0.918423, 0.075389, 0.006188]],
        [-1.8e-05, -4.030269, 3.438614, 0.591673],
        id="V1-row-4-correct-mask",
    ),
    pytest.param(
        [0.5, 0.5, 0.5],
        2,
        0.02,
        [0, 1],
        [[1 / 3, 1 / 3, 1 / 3], [0, 0.5, 0.5]],
        [-16.666668, -12.5, 29.166670],
        id="V1-row-5-ties",
    ),
]
# The same under the published mask.
V1_PUBLISHED = [
    pytest.param(
        [0.1, 0.4, 0.3, 0.2],
        2,
        1.0,
        [1, 2],
        [[0.213838, 0.288651, 0.261183, 0.236328], [0.300610, 4.06e-9, 0.367165, 0.332225]],
        [-0.845391, -0.150099, 0.224133, 0.771357],
        id="V1-row-1",
    ),
    pytest.param(
        [0.50, 0.52, 0.48, 0.10],
        2,
        0.02,
        [1, 0],
        [[0.244728, 0.665241, 0.090031, 5.0e-10], [0.731059, 2.0e-8, 0.268941, 1.5e-9]],
        [-30.004686, 5.145569, 24.859095, 2.4e-7],
        id="V1-row-2",
    ),
    pytest.param(
        [0.90, 0.50, 0.45, 0.40],
        2,
        0.02,
        [0, 1],
        [[1, 2e-9, 0, 0], [0.816711, 0.168337, 0.013818, 0.001134]],
        [-8.141575, 6.738733, 1.244045, 0.158830],
        id="V1-row-3-leak",
    ),
    pytest.param(
        [0.80, 0.50, 0.45, 0.40],
        2,
        0.02,
        [0, 1],
        [[1, 3e-7, 0, 0], [0.029148, 0.891653, 0.073191, 0.006008]],
        [-1.539132, -2.499237, 3.454416, 0.583951],
        id="V1-row-4-leak",
    ),
    pytest.param(
        [0.5, 0.5, 0.5],
        2,
        0.02,
        [0, 1],
        [[1 / 3, 1 / 3, 1 / 3], [5e-9, 0.5, 0.5]],
        [-16.666668, -12.5, 29.166670],
        id="V1-row-5-ties",
    ),
]


@pytest.mark.parametrize(("scores", "k", "temperature", "indices", "distributions", "gradient"), V1)
def test_V1_topk_forward_and_gradient(scores, k, temperature, indices, distributions, gradient):
    check_V1(scores, k, temperature, indices, distributions, gradient, 0.0)


@pytest.mark.parametrize(("scores", "k", "temperature", "indices", "distributions", "gradient"), V1_PUBLISHED)
def test_V1_with_the_published_mask(scores, k, temperature, indices, distributions, gradient):
    check_V1(scores, k, temperature, indices, distributions, gradient, 1e-8)


def check_V1(scores, k, temperature, indices, distributions, gradient, mask_epsilon):
    scores_BN = torch.tensor([scores], dtype=torch.float64, requires_grad=True)
    z_BKN, indices_BK = straight_through_topk(scores_BN, k, temperature, mask_epsilon=mask_epsilon)
    assert indices_BK.tolist() == [indices]
    assert torch.equal(z_BKN, torch.nn.functional.one_hot(indices_BK, len(scores)).double())
    torch.testing.assert_close(
        slot_distributions(scores_BN.detach(), indices_BK, temperature, mask_epsilon)[0],
        torch.tensor(distributions, dtype=torch.float64),
        atol=2e-6,
        rtol=0,
    )
    weights = torch.arange(1, k * len(scores) + 1, dtype=torch.float64).view(1, k, -1)
    (z_BKN * weights).sum().backward()
    torch.testing.assert_close(scores_BN.grad[0], torch.tensor(gradient, dtype=torch.float64), atol=2e-5, rtol=2e-6)


def test_V1_more_selected_than_candidates_is_an_error():
    with pytest.raises(InputError, match="num_selected is 4, the pool holds 3"):
        straight_through_topk(torch.zeros(1, 3), 4, 0.02)


def test_V2_whole_retrieval_step():
    query = torch.tensor([[[1.0, 0, 0, 0]]], requires_grad=True)
    documents_BNMD = torch.tensor([[[[1.0, 0, 0, 0]], [[0.8, 0.6, 0, 0]], [[0.0, 1, 0, 0]]]])
    scores_BN = cosine(query, documents_BNMD)
    torch.testing.assert_close(scores_BN, torch.tensor([[1.0, 0.8, 0.0]]))
    z_BKN, indices_BK = straight_through_topk(scores_BN, 2, 0.5)
    selected_BKMD = torch.einsum("bkn,bnmd->bkmd", z_BKN, documents_BNMD)
    assert indices_BK.tolist() == [[0, 1]]
    assert torch.equal(selected_BKMD[0], documents_BNMD[0, :2])
    loss = selected_BKMD[0, 0, 0, 1] + 2 * selected_BKMD[0, 1, 0, 1]
    assert loss.item() == pytest.approx(1.2)
    loss.backward()
    torch.testing.assert_close(query.grad[0, 0], torch.tensor([0, 0.329399, 0, 0]), atol=1e-6, rtol=0)


def test_V3_flattened_not_mean():
    query = torch.tensor([[[1.0, 0], [0, 1]]])
    documents = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 1.0], [1, 0]], [[1.0, 0], [1, 0]], [[1.0, 1], [1, 1]]]])
    torch.testing.assert_close(cosine(query, documents), torch.tensor([[1.0, 0.0, 0.5, math.sqrt(0.5)]]))


def documented_gradient(
    scores: list[float], indices: list[int], temperature: float, g_KN: list[list[float]]
) -> list[float]:
    """(1/τ) Σ_j p_j ⊙ (g_j − ⟨p_j, g_j⟩) for one question, in plain Python."""
    gradient = [0.0] * len(scores)
    for slot, g in enumerate(g_KN):
        free = [n for n in range(len(scores)) if n not in indices[:slot]]
        top = max(scores[n] for n in free)
        mass = {n: math.exp((scores[n] - top) / temperature) for n in free}
        total = sum(mass.values())
        p = [mass.get(n, 0.0) / total for n in range(len(scores))]
        mean = sum(pn * gn for pn, gn in zip(p, g, strict=True))
        for n in range(len(scores)):
            gradient[n] += p[n] * (g[n] - mean) / temperature
    return gradient


pools = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n),
        st.integers(1, n),
        st.sampled_from([0.02, 0.5]),
        st.integers(0, 2**31),
    )
)


@given(pools)
@settings(max_examples=examples(60), deadline=None)
def test_forward_is_the_hard_choice_and_backward_the_documented_formula(pool):
    scores, k, temperature, seed = pool
    scores_BN = torch.tensor([scores], dtype=torch.float64, requires_grad=True)
    z_BKN, indices_BK = straight_through_topk(scores_BN, k, temperature)
    expected = sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:k]
    assert indices_BK[0].tolist() == expected
    assert torch.equal(z_BKN[0], torch.eye(len(scores), dtype=torch.float64)[expected])
    g_BKN = torch.randn(1, k, len(scores), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z_BKN.backward(g_BKN)
    wanted = torch.tensor(documented_gradient(scores, expected, temperature, g_BKN[0].tolist()), dtype=torch.float64)
    torch.testing.assert_close(scores_BN.grad[0], wanted, atol=1e-9, rtol=1e-9)


def test_the_surrogate_passes_gradcheck():
    scores_BN = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    indices_BK = scores_BN.detach().argsort(dim=1, descending=True)[:, :3]
    assert torch.autograd.gradcheck(lambda s: slot_distributions(s, indices_BK, 0.3), (scores_BN,))


def test_the_score_passes_gradcheck():
    rng = torch.Generator().manual_seed(1)
    query = torch.randn(2, 3, 4, dtype=torch.float64, generator=rng).requires_grad_()
    memory = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=rng)
    assert torch.autograd.gradcheck(lambda q: cosine(q, memory), (query,))


def test_places_without_a_candidate_are_chosen_last_and_get_no_gradient():
    scores_BN = torch.tensor([[0.1, 0.9, 0.3, 0.8]], dtype=torch.float64, requires_grad=True)
    valid_BN = torch.tensor([[True, False, True, False]])
    z_BKN, indices_BK = straight_through_topk(scores_BN, 3, 0.02, valid_BN)
    assert indices_BK[0, :2].tolist() == [2, 0]
    z_BKN.backward(torch.arange(12.0, dtype=torch.float64).view(1, 3, 4))
    alone = torch.tensor([[0.1, 0.3]], dtype=torch.float64, requires_grad=True)
    straight_through_topk(alone, 2, 0.02)[0].backward(torch.tensor([[[0.0, 2], [4, 6]]], dtype=torch.float64))
    torch.testing.assert_close(
        scores_BN.grad, torch.tensor([[alone.grad[0, 0], 0, alone.grad[0, 1], 0]], dtype=torch.float64)
    )


@given(st.integers(0, 2**31))
@settings(max_examples=examples(20), deadline=None)
def test_the_order_of_the_candidates_does_not_matter(seed):
    rng = torch.Generator().manual_seed(seed)
    scores_BN, g_BKN = (
        torch.randn(1, 6, dtype=torch.float64, generator=rng),
        torch.randn(1, 3, 6, dtype=torch.float64, generator=rng),
    )
    order = torch.randperm(6, generator=rng)

    def gradient(scores: Tensor, weights: Tensor) -> Tensor:
        scores = scores.clone().requires_grad_()
        straight_through_topk(scores, 3, 0.1)[0].backward(weights)
        return scores.grad

    torch.testing.assert_close(gradient(scores_BN[:, order], g_BKN[..., order]), gradient(scores_BN, g_BKN)[:, order])
