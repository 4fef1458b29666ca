"""The score's geometry: its definition, what it leaves out, and the cases without a direction."""

import numpy as np
import pytest
import torch

from clara.config.model import Score
from clara.model.array_geometry import PUBLISHED, unit_rows
from clara.model.geometry import QuestionMean, cosine, represent

M, D = 3, 5
SCORES = [
    Score(pooling=pooling, centred=centred) for pooling in ("flattened", "slot_mean") for centred in (False, True)
]


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, M, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mean_of(score: Score, memory: torch.Tensor) -> torch.Tensor | None:
    return memory.flatten(0, -3).mean(dim=0) if score.centred else None


def test_the_published_score_is_the_cosine_of_the_flattened_vectors_bit_for_bit() -> None:
    query, memory = vectors(2), vectors(2, 7, seed=1)
    expected = torch.einsum(
        "bf,bnf->bn",
        torch.nn.functional.normalize(query.flatten(1), dim=-1),
        torch.nn.functional.normalize(memory.flatten(2), dim=-1),
    )
    assert torch.equal(cosine(query, memory), expected)
    assert torch.equal(cosine(query, memory, PUBLISHED), expected)


@pytest.mark.parametrize("score", SCORES)
def test_a_score_is_what_its_definition_says(score: Score) -> None:
    query, memory = vectors(2), vectors(2, 7, seed=1)
    mean = mean_of(score, memory)
    rows = memory if mean is None else memory - mean
    for b in range(2):
        for n in range(7):
            q, d = query[b].double(), rows[b, n].double()
            q, d = (q.mean(0), d.mean(0)) if score.pooling == "slot_mean" else (q.flatten(), d.flatten())
            assert cosine(query, memory, score, mean)[b, n] == pytest.approx(
                float(q @ d / q.norm() / d.norm()), abs=1e-5
            )


@pytest.mark.parametrize("score", SCORES)
def test_arrays_and_tensors_give_the_same(score: Score) -> None:
    memory = vectors(7)
    mean = mean_of(score, memory)
    mean_MD = None if mean is None else mean.numpy()
    units = unit_rows(memory.numpy(), score, mean_MD)
    assert np.allclose(units, represent(memory, score, mean).numpy(), atol=1e-6)
    alone = np.concatenate([unit_rows(row[None].numpy(), score, mean_MD) for row in memory])
    assert np.array_equal(alone, units)
    assert unit_rows(memory[:0].numpy(), score).shape == (0, units.shape[1])


@pytest.mark.parametrize("score", SCORES)
def test_the_gradient_is_that_of_the_cosine(score: Score) -> None:
    memory = vectors(2, 4, seed=1, dtype=torch.float64)
    query = vectors(2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: cosine(q, memory, score, mean_of(score, memory)), (query,))


@pytest.mark.parametrize("score", [score for score in SCORES if score.centred])
@pytest.mark.parametrize("rows", [1, 4])
def test_identical_rows_score_zero_with_everything(score: Score, rows: int) -> None:
    """So does a corpus of one row: what is left of each row is zero, and has no direction."""
    row = vectors()
    memory = row.expand(1, rows, M, D)
    query = vectors(1).requires_grad_()
    scores = cosine(query, memory, score, row)
    scores.sum().backward()
    assert torch.equal(scores, torch.zeros(1, rows))
    assert query.grad is not None
    assert bool(query.grad.isfinite().all())
    assert not unit_rows(memory[0].numpy(), score, (row * (1 + 1e-7)).numpy()).any()  # what rounding leaves is nothing


@pytest.mark.parametrize("score", [score for score in SCORES if score.centred])
def test_a_question_that_equals_the_mean_scores_zero_and_has_a_finite_gradient(score: Score) -> None:
    module, memory = QuestionMean(score, M, D), vectors(2, 4, seed=1)
    assert module.mean is not None
    question = vectors(2, seed=2)
    with torch.no_grad():
        module.mean.copy_(question[0])
    question.requires_grad_()
    scores = cosine(module(question), memory, score, mean_of(score, memory))
    scores.square().sum().backward()
    assert torch.equal(scores[0], torch.zeros(4))
    assert bool(scores[1].abs().max() > 0)
    assert question.grad is not None
    assert module.mean.grad is not None
    assert not question.grad[0].any()
    assert bool(question.grad.isfinite().all() and module.mean.grad.isfinite().all())


def test_a_score_that_is_not_centred_has_no_parameter_and_changes_no_bit() -> None:
    module, query = QuestionMean(Score(pooling="slot_mean"), M, D), vectors(2)
    assert not list(module.parameters())
    assert not module.state_dict()
    assert module(query) is query
