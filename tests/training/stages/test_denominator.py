"""The softmax over rows that are not read: equal to brute force, unbiased when sampled, blind to excluded rows."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from clara.config.stages import Joint
from clara.config.tree import Retrieval
from clara.data.questions import Question, read_questions
from clara.data.utilities import Scored
from clara.errors import InputError
from clara.index.search import MemoryIndex
from clara.memory.store import MemoryStore
from clara.model.array_geometry import unit_rows
from clara.model.losses import utility_divergence
from clara.retrieval.pools import QuestionRows
from tests.helpers.joint_world import World
from training import joint
from training.stages.candidates import Candidates
from training.stages.denominator import Denominator, rows_that_count

DEVICE = torch.device("cpu")


def settings(**given: object) -> Joint:
    return Joint.model_validate({"utility_weight": 1.0, "denominator": "all", **given})


def candidates(world: World) -> Candidates:
    store = MemoryStore.open(world.memory)
    return Candidates(Joint(), Retrieval(), seed=0, store=store, index=MemoryIndex.open(world.index, store))


def denominator(world: World, seed: int = 0, **given: object) -> tuple[Denominator, MemoryStore]:
    chosen, found = settings(**given), candidates(world)
    rows = rows_that_count(chosen, found.store.row_ids, [], [])
    return Denominator(found, chosen, seed, *rows), found.store


def asked(world: World, store: MemoryStore, count: int = 2) -> tuple[list[Question], list[QuestionRows]]:
    questions = read_questions(world.questions, "train")[:count]
    return questions, [QuestionRows.of(question, store) for question in questions]


def sums(
    part: Denominator, step: int, pools: Sequence[Sequence[int]], world: World, store: MemoryStore, query: torch.Tensor
) -> torch.Tensor:
    """Sum of exp(z) of each question over the rows of a step."""
    questions, known = asked(world, store)
    drawn = part.of_step(step, (row for pool in pools for row in pool))
    unread = part.of_batch(drawn, questions, known, pools, DEVICE)
    assert unread is not None
    return (query @ unread.unit.T / 0.5 + unread.log_weight).exp().sum(dim=1)


def naive_sums(
    world: World, store: MemoryStore, rows: Sequence[int], pools: Sequence[Sequence[int]], query: torch.Tensor
) -> torch.Tensor:
    _, known = asked(world, store)
    found = []
    for vector, pool, own in zip(query, pools, known, strict=True):
        kept = [row for row in rows if row not in pool and row not in own.excluded]
        unit = torch.from_numpy(unit_rows(store.memory(kept)))
        found.append(torch.exp(unit @ vector / 0.5).sum())
    return torch.stack(found)


def query_of(store: MemoryStore) -> torch.Tensor:
    vectors = torch.randn(2, store.num_memory_tokens * store.hidden_size, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_all_rows_count_once_without_the_own_pool_and_what_is_excluded(world: World) -> None:
    part, store = denominator(world)
    rows = store.row_ids.tolist()
    pools, query = [rows[:3], rows[2:6]], query_of(store)
    torch.testing.assert_close(
        sums(part, 0, pools, world, store, query), naive_sums(world, store, rows, pools, query), rtol=1e-4, atol=1e-4
    )


def test_others_are_the_pools_of_the_step_alone(world: World) -> None:
    part, store = denominator(world, denominator="others")
    rows = store.row_ids.tolist()
    pools, query = [rows[:3], rows[5:8]], query_of(store)
    found = naive_sums(world, store, [*pools[0], *pools[1]], pools, query)
    torch.testing.assert_close(sums(part, 0, pools, world, store, query), found, rtol=1e-4, atol=1e-4)


def test_the_mean_of_sampled_sums_is_the_whole_sum_and_its_bias_falls_with_the_sample(world: World) -> None:
    """The sum is unbiased; the loss is a log of it, and so is biased downwards, less so with more rows."""
    part, store = denominator(world)
    rows = store.row_ids.tolist()
    pools, query = [rows[:3], rows[2:6]], query_of(store)
    whole = sums(part, 0, pools, world, store, query)
    bias, draws = [], 400
    scores, nats = torch.zeros(2, 3), torch.tensor([[-1.0, -2.0, -3.0]] * 2)

    def loss(sum_B: torch.Tensor) -> float:
        return float(utility_divergence(scores, nats, 0.5, 1.0, unread_B=sum_B.log()))

    for wanted in (4, 16):
        sampled, _ = denominator(world, denominator_rows=wanted)
        found = torch.stack([sums(sampled, step, pools, world, store, query) for step in range(draws)])
        error = found.std(dim=0) / math.sqrt(draws)
        assert bool((abs(found.mean(dim=0) - whole) < 4 * error).all())
        bias.append(abs(np.mean([loss(one) for one in found]) - loss(whole)))
    assert bias[1] < bias[0] / 2


def test_a_draw_depends_on_seed_and_step_alone_and_holds_the_rows_that_are_read(world: World) -> None:
    part, store = denominator(world, denominator_rows=4)
    read = store.row_ids[5:9].tolist()
    (rows, weights), (again, _) = (part.of_step(2, read) or ([], []) for _ in range(2))
    np.testing.assert_array_equal(rows, again)
    assert {*read} <= {*rows.tolist()}
    assert len(rows) == 8
    rest = len(store) - 4
    expected = [0.0 if row in read else math.log(rest / 4) for row in rows.tolist()]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    other, _ = part.of_step(3, read) or ([], [])
    assert rows.tolist() != other.tolist()


def test_rows_that_help_count_by_what_was_scored() -> None:
    scored = [Scored("a", (1, 2, 3), (-1.0, -5.0, -2.0), -4.0), Scored("b", (3, 4), (-1.0, -9.0), -2.0)]
    ids = np.arange(10)
    rows, counts = rows_that_count(settings(denominator="helpful"), ids, [], scored)
    assert (rows.tolist(), counts.tolist()) == ([1, 3], [1.0, 1.0])
    rows, counts = rows_that_count(settings(denominator="frequency"), ids, [], scored)
    assert (rows.tolist(), counts.tolist()) == ([1, 3], [1.0, 2.0])
    known = [QuestionRows(positive=(7, 2), excluded=frozenset(), pool=())]
    rows, counts = rows_that_count(settings(denominator="targets"), ids, known, [])
    assert (rows.tolist(), counts.tolist()) == ([2, 7], [1.0, 1.0])


def losses(world: World, output: Path, **given: object) -> list[float]:
    labels = {"joint__labels_weight": 1, "joint__answer_weight": 0, "joint__train_generator": "false"}
    chosen = world.sets(output, **labels | {"joint__inject_positives": "true", "joint__steps": 3} | given)
    assert joint.main(["--launcher", "local", *chosen]) == 0
    lines = next(output.glob("run-*/metrics.jsonl")).read_text().splitlines()
    return [float(json.loads(line)["labels_loss"]) for line in lines]


@pytest.mark.parametrize("kind", ["others", "targets", "all"])
def test_how_a_step_is_cut_into_micro_batches_changes_no_loss(world: World, tmp_path: Path, kind: str) -> None:
    sampled = {} if kind == "others" else {"joint__denominator_rows": 6}
    found = [
        losses(world, tmp_path / str(size), joint__micro_batch=size, joint__denominator=kind, **sampled)
        for size in (1, 4)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    pool = losses(world, tmp_path / "pool")
    assert found[0][0] > pool[0]  # more rows, a larger denominator


def test_settings_that_nothing_would_come_of_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows that help training questions are known from UTILITIES"):
        losses(world, tmp_path, joint__denominator="helpful")
    with pytest.raises(InputError, match=r"no loss has a denominator"):
        losses(world, tmp_path, joint__denominator="all", joint__labels_weight=0, joint__answer_weight=1)
    with pytest.raises(InputError, match=r"'others' is never sampled"):
        losses(world, tmp_path, joint__denominator="others", joint__denominator_rows=3)
