"""Rows of a step drawn target by target: one with many questions counts as much as one with a single question."""

from collections.abc import Sequence

import torch

from training.loop.loop import sample


def sample_by_target(seed: int, step: int, count: int, groups: Sequence[Sequence[int]]) -> list[int]:
    """The `count` rows of a step, a function of the step as `sample` is.

    Targets are drawn by `sample`: each of them once an epoch, in a seeded order. Of a target's rows each epoch takes
    the next one in a seeded order, which begins again when all of them were taken. Where each target has one row, this
    is `sample` over the targets.

    Args:
        seed: of the run.
        step: 0-based.
        count: rows of a step.
        groups: rows of each target, at least one each (`clara.data.questions.by_target`).
    """
    rows = []
    for position, target in enumerate(sample(seed, step, count, len(groups)), step * count):
        round_, turn = divmod(position // len(groups), len(groups[target]))
        generator = torch.Generator().manual_seed((seed * 1_000_003 + target) * 1_009 + round_)
        rows.append(groups[target][int(torch.randperm(len(groups[target]), generator=generator)[turn])])
    return rows
