"""Sampling by target: every target as often, every question of a target as often, a function of the step."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from training.loop.balanced import sample_by_target
from training.loop.loop import sample

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=7)


def groups_of(sizes: list[int]) -> list[list[int]]:
    """Consecutive rows, so many for each target."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, count=st.integers(1, 6), seed=st.integers(0, 9))
def test_every_target_is_asked_for_once_an_epoch_and_its_questions_in_turn(
    sizes: list[int], count: int, seed: int
) -> None:
    groups, epochs = groups_of(sizes), 60  # a multiple of every size, and of every count
    target_of = {row: target for target, rows in enumerate(groups) for row in rows}
    steps = epochs * len(groups) // count
    drawn = [row for step in range(steps) for row in sample_by_target(seed, step, count, groups)]
    for epoch in range(epochs):
        asked = [target_of[row] for row in drawn[epoch * len(groups) : (epoch + 1) * len(groups)]]
        assert sorted(asked) == list(range(len(groups)))
    times = Counter(drawn)
    assert all(times[row] == epochs // len(rows) for rows in groups for row in rows)


@settings(deadline=None)
@given(number=st.integers(1, 9), count=st.integers(1, 12), step=st.integers(0, 20), seed=st.integers(0, 9))
def test_with_one_question_a_target_it_is_the_plain_sample(number: int, count: int, step: int, seed: int) -> None:
    assert sample_by_target(seed, step, count, [[i] for i in range(number)]) == sample(seed, step, count, number)
