"""Losses: closed forms, masks, brute-force twins."""

import math

import pytest
import torch

from clara.model.losses import info_nce, log_mass, state_mse, utility_divergence

SCORES = torch.tensor([[0.5, 0.52, 0.48, 0.1]])


def positives(*places: int) -> torch.Tensor:
    return torch.tensor([[n in places for n in range(4)]])


def test_V4_mse_is_the_mean_over_dimensions():
    assert float(state_mse(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 4.0]]))) == pytest.approx(5.0)
    two_rows = state_mse(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.tensor([[2.0, 4.0], [0.0, 0.0]]))
    assert float(two_rows) == pytest.approx(2.5)


@pytest.mark.parametrize(("places", "loss"), [((0,), 1.407606), ((0, 1), 0.094345), ((3,), 21.407606)])
def test_V5_info_nce(places, loss):
    assert float(info_nce(SCORES, positives(*places), 0.02)) == pytest.approx(loss, abs=2e-5)


def test_info_nce_averages_over_questions_that_have_a_positive():
    scores, mask = SCORES.repeat(3, 1), torch.cat([positives(0), positives(), positives(3)])
    assert float(info_nce(scores, mask, 0.02)) == pytest.approx((1.407606 + 21.407606) / 2, abs=2e-5)


def test_info_nce_without_a_positive_is_zero_with_a_gradient():
    scores = SCORES.clone().requires_grad_()
    loss = info_nce(scores, positives(), 0.02)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(scores.grad, torch.zeros(1, 4))


def test_info_nce_ignores_places_without_a_candidate():
    padded = torch.cat([SCORES, torch.tensor([[0.99, 0.99]])], dim=1).requires_grad_()
    valid = torch.tensor([[True] * 4 + [False] * 2])
    mask = torch.tensor([[True, False, False, False, True, False]])
    loss = info_nce(padded, mask, 0.02, valid)
    assert float(loss) == pytest.approx(1.407606, abs=2e-5)
    loss.backward()
    assert torch.equal(padded.grad[0, 4:], torch.zeros(2))
    assert torch.isfinite(padded.grad).all()


def test_utility_divergence_equals_its_definition():
    scores, likelihood = [0.3, -0.2, 0.1], [-4.0, -9.0, -3.5]

    def softmax(values: list[float]) -> list[float]:
        mass = [math.exp(v - max(values)) for v in values]
        return [m / sum(mass) for m in mass]

    p, q = softmax([v / 2.0 for v in likelihood]), softmax([s / 0.5 for s in scores])
    wanted = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    got = utility_divergence(torch.tensor([scores] * 2), torch.tensor([likelihood] * 2), 0.5, 2.0)
    assert float(got) == pytest.approx(wanted, rel=1e-5)


def test_utility_divergence_ignores_places_without_a_candidate():
    scores = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    valid = torch.tensor([[True, True, False]])
    loss = utility_divergence(scores, torch.tensor([[-4.0, -9.0, 0.0]]), 0.5, 2.0, valid)
    alone = utility_divergence(torch.tensor([[0.3, -0.2]]), torch.tensor([[-4.0, -9.0]]), 0.5, 2.0)
    assert float(loss) == pytest.approx(float(alone), rel=1e-6)
    loss.backward()
    assert float(scores.grad[0, 2]) == 0.0


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_losses_pass_gradcheck(temperature):
    rng = torch.Generator().manual_seed(3)
    scores = torch.randn(3, 5, dtype=torch.float64, generator=rng).requires_grad_()
    mask = torch.tensor([[True, False, True, False, False], [False] * 5, [False, True, False, False, False]])
    valid = torch.tensor([[True] * 5, [True] * 5, [True, True, True, False, False]])
    likelihood = torch.randn(3, 5, dtype=torch.float64, generator=rng)
    assert torch.autograd.gradcheck(lambda s: info_nce(s, mask, temperature, valid), (scores,))
    assert torch.autograd.gradcheck(lambda s: utility_divergence(s, likelihood, temperature, 1.0, valid), (scores,))
    assert torch.autograd.gradcheck(state_mse, (scores, likelihood))


def test_unread_rows_join_the_denominator_of_both_losses():
    rng = torch.Generator().manual_seed(4)
    scores, unread = torch.randn(3, 4, generator=rng), torch.randn(3, 6, generator=rng)
    positive = torch.tensor([[True, False, True, False]] * 3)
    likelihood = torch.randn(3, 4, generator=rng)
    unread_B = (unread / 0.5).logsumexp(dim=1)
    every = torch.cat([scores, unread], dim=1)
    more = torch.nn.functional.pad(positive, (0, 6))
    torch.testing.assert_close(
        info_nce(scores, positive, 0.5, unread_B=unread_B), info_nce(every, more, 0.5), rtol=1e-6, atol=1e-6
    )
    target = (likelihood / 2.0).softmax(dim=1)
    logs = (every / 0.5).log_softmax(dim=1)[:, :4]
    expected = (target * (target.log() - logs)).sum(dim=1).mean()
    torch.testing.assert_close(utility_divergence(scores, likelihood, 0.5, 2.0, unread_B=unread_B), expected)


@pytest.mark.parametrize("without", [None, torch.tensor([-1.0, -0.5])])
def test_unread_rows_leave_the_target_unchanged(without):
    """They add log(1 + Σ exp(z) of the unread / Σ exp(z) of the read) for each question that counts, and no more."""
    scores = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.1]])
    likelihood, unread_B = torch.tensor([[-0.5, -2.0, -0.9], [-0.1, -3.0, -0.4]]), torch.tensor([1.5, -0.7])
    alone = utility_divergence(scores, likelihood, 0.5, 1.0, without_B=without)
    together = utility_divergence(scores, likelihood, 0.5, 1.0, without_B=without, unread_B=unread_B)
    added = torch.log1p((unread_B - (scores / 0.5).logsumexp(dim=1)).exp()).mean()
    torch.testing.assert_close(together - alone, added)


def test_the_mass_of_a_row_is_how_much_more_likely_it_makes_the_answer():
    """exp(u/τ_u) − 1, clipped at 0, normalised; a question that nothing helps counts as 0."""
    scores = torch.tensor([[0.3, -0.2, 0.9], [0.5, 0.1, 0.0]], requires_grad=True)
    likelihood, without = torch.tensor([[-4.0, -9.0, -1.0], [-3.0, -2.0, -5.0]]), torch.tensor([-5.0, -2.0])
    loss = utility_divergence(scores, likelihood, 0.5, 2.0, without_B=without)
    mass = [math.exp(1 / 2) - 1, 0.0, math.exp(4 / 2) - 1]
    logs = (scores[0] / 0.5).log_softmax(dim=0).tolist()
    shares = [m / sum(mass) for m in mass]
    expected = sum(p * (math.log(p) - log) for p, log in zip(shares, logs, strict=True) if p)
    assert float(loss) == pytest.approx(expected / 2, rel=1e-5)
    loss.backward()
    assert torch.equal(scores.grad[1], torch.zeros(3))
    nothing = utility_divergence(scores[1:], likelihood[1:], 0.5, 2.0, without_B=without[1:])
    assert float(nothing) == 0.0


def test_log_mass_does_not_overflow():
    found = log_mass(torch.tensor([1000.0, 1e-6, 0.0, -3.0]), 1.0)
    assert found[0] == 1000.0
    assert float(found[1]) == pytest.approx(math.log(1e-6), rel=1e-3)
    assert torch.isneginf(found[2:]).all()
