"""The training loop of every stage, on one rank.

A step draws its batches, which are a function of its number, sums the normaliser over the ranks, computes the
micro-batches, and updates. Then it logs figures and, every so many steps, writes a run state to resume from.
"""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from clara.config.stages import Optimiser
from clara.errors import InputError
from clara.progress import Progress
from training.loop.engine import Engine
from training.loop.run_state import RunStates

logger = logging.getLogger(__name__)
_MOST_SKIPPED = 10


class NotFiniteError(InputError):
    """A run stops because its loss, gradient or weights are not finite. Every rank raises it at the same step."""


class Stage(ABC):
    """What a stage trains and on what.

    Batches are a function of the step number, so that the data position is the step.
    """

    name: str
    module: nn.Module
    steps: int
    optimiser: Optimiser

    @abstractmethod
    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Parameters that train, with their learning rates. Everything else is already frozen."""

    @abstractmethod
    def micro_batches(self, step: int, rank: int, world: int) -> list[Any]:
        """The micro-batches of a rank in a step; the same number on every rank."""

    def broken(self) -> bool:
        """Whether this rank's batches were drawn with query vectors that are not finite.

        Then the step counts as one whose loss is not finite, on every rank.
        """
        return False

    @abstractmethod
    def rows(self, step: int) -> int:
        """Documents or questions of the whole step, which row-wise losses average over."""

    def rate_factors(self, step: int) -> list[float]:
        """For each of `groups`, the share of its learning rate at a step (0-based)."""
        return [rate_factor(step, self.steps, self.optimiser)] * len(self.groups())

    def begin(self, engine: Engine) -> None:  # noqa: B027
        """Called on every rank once, before a run state is restored and before the first step."""

    def announcement(self, step: int) -> float:
        """The number that this rank adds to the sum over ranks before a step, which `before_step` receives."""
        return 0.0

    def before_step(self, step: int, announced: float) -> None:  # noqa: B027
        """Called on every rank before a step, with the sum of all announcements."""

    def after_step(self, step: int, engine: Engine) -> dict[str, float]:
        """Called on every rank after a step; returns figures to log."""
        return {}

    def state(self) -> dict[str, Any]:
        """What resuming needs in addition to weights, optimiser and step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `state` returned."""


def rate_factor(step: int, steps: int, settings: Optimiser) -> float:
    """The share of the learning rate at a step (0-based).

    Warm-up is linear and its first step is not zero (Differs: the reference wastes its first update at rate 0, as
    `warmup_from_zero` does); cosine falls to `min_ratio`.
    """
    warmup = math.ceil(settings.warmup_ratio * steps)
    if step < warmup:
        return (step + int(not settings.warmup_from_zero)) / warmup
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.min_ratio + (1 - settings.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def sample(seed: int, step: int, count: int, size: int) -> list[int]:
    """The `count` rows of a step: consecutive positions in endless seeded permutations, one for each epoch."""
    rows = []
    epoch, order = -1, torch.empty(0)
    for position in range(step * count, (step + 1) * count):
        if position // size != epoch:
            epoch = position // size
            order = torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        rows.append(int(order[position % size]))
    return rows


class Figures:
    """Sums and counts of a step's figures over micro-batches and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, figures: Mapping[str, tuple[float, float]]) -> None:
        """Add one micro-batch's figures."""
        for name, (total, count) in figures.items():
            pair = self._sums.setdefault(name, [0.0, 0.0])
            pair[0] += total
            pair[1] += count

    def means(self, engine: Engine) -> dict[str, float]:
        """Means over all ranks (a collective), without figures that have nothing to average."""
        names = sorted(self._sums)
        flat = engine.sum([v for n in names for v in self._sums[n]])
        return {n: flat[2 * i] / flat[2 * i + 1] for i, n in enumerate(names) if flat[2 * i + 1]}


def run(
    stage: Stage,
    engine: Engine,
    directory: Path,
    *,
    seed: int,
    checkpoint_every: int,
    log: Callable[[int, dict[str, float]], None] | None = None,
    on_nonfinite: Literal["stop", "skip"] = "stop",
) -> None:
    """Train a stage to its last step, resuming from the run state in `directory`, if there is one.

    If the loss or gradient of one rank is not finite, no rank updates its weights. A run state is known to be good
    once a step from it was finite: when the run stops, the state that the first broken step started from is deleted.
    Some updates have no later step that would show that they were bad: the last one, and those of weights that no loss
    depends on any more. So the weights are checked too, before a state is written and at the end.

    Args:
        stage: what trains.
        engine: of this rank.
        directory: of the run.
        seed: of the random state of every step.
        checkpoint_every: steps between run states.
        log: takes the figures of a step (1-based), on rank 0.
        on_nonfinite: stop there, or skip the update and continue; ten in a row stop the run anyway.

    Raises:
        NotFiniteError: loss, gradient or weights are not finite; the message names the step. Every rank raises.
    """
    stage.begin(engine)
    states = RunStates(directory, engine)
    start = states.resume(stage)
    began = step_began = time.monotonic()
    progress = Progress(stage.steps, stage.name, " steps", initial=start, shown=engine.rank == 0)
    skipped_in_a_row = 0
    try:
        for step in range(start, stage.steps):
            values = _update(stage, engine, step, seed)
            try:
                skipped_in_a_row = check_finite(
                    stage.name, step, values, on_nonfinite, skipped_in_a_row, logs=engine.rank == 0
                )
            except NotFiniteError:
                states.forget(step - skipped_in_a_row)
                raise
            # A skipped step has the weights of the step before: writing them again would displace an older state.
            saving = (step + 1) % checkpoint_every == 0 and step + 1 < stage.steps and not skipped_in_a_row
            if (saving or step + 1 == stage.steps) and not finite_weights(stage, engine):
                raise NotFiniteError(
                    f"{stage.name}: weights are not finite after step {step + 1}; lower the learning rate (no run "
                    "state and no CHECKPOINT holds them)"
                )
            values |= stage.after_step(step, engine)
            values["run_state_seconds"], states.blocked_seconds = states.blocked_seconds, 0.0
            values["seconds"] = time.monotonic() - began
            values["step_seconds"] = time.monotonic() - step_began
            if engine.rank == 0 and log is not None:
                log(step + 1, values)
            progress.set_postfix({k: values[k] for k in ("loss", "answer_nats") if k in values}, refresh=False)
            progress.update()
            if saving:
                states.save(step + 1, stage)
            step_began = time.monotonic()
    finally:
        states.wait()
        progress.close()


def _update(stage: Stage, engine: Engine, step: int, seed: int) -> dict[str, float]:
    """One step: batches, losses, gradients, update. Returns its figures, the same on every rank."""
    # Random state is a function of the step, so that a resumed run draws what the undisturbed one would have drawn.
    torch.manual_seed(seed * 1_000_003 + step * 1009 + engine.rank)
    batches = stage.micro_batches(step, engine.rank, engine.world)
    normaliser, announced, broken = engine.sum(
        [sum(b.weight for b in batches), stage.announcement(step), float(stage.broken())]
    )
    stage.before_step(step, announced)
    factor = rate_factor(step, stage.steps, stage.optimiser)
    if broken:
        return {"loss": math.nan, "gradient_norm": math.nan, "learning_rate_factor": factor}
    figures = Figures()
    for number, batch in enumerate(batches):
        # A step without any answer token has a loss of 0, not of 0/0.
        output = engine.forward(batch, max(normaliser, 1e-9), stage.rows(step))
        engine.backward(nan_if_not_finite(output.loss), last=number == len(batches) - 1)
        figures.add(output.figures | {"loss": (float(output.loss.detach()), 1.0 / (len(batches) * engine.world))})
    values = figures.means(engine)
    values["gradient_norm"] = engine.update(stage.rate_factors(step))
    values["learning_rate_factor"] = factor
    return values


def nan_if_not_finite(loss: torch.Tensor) -> torch.Tensor:
    """Turn a loss that is not finite into NaN, so that the global gradient norm shows it on every rank."""
    return loss if bool(torch.isfinite(loss.detach())) else loss * math.nan


def check_finite(name: str, step: int, values: dict[str, float], on_nonfinite: str, before: int, *, logs: bool) -> int:
    """Check that a step's loss and gradient are finite, from figures that are the same on every rank; sets `skipped`.

    Args:
        name: of the stage.
        step: 0-based.
        values: `loss` and `gradient_norm` of the step.
        on_nonfinite: `stop` or `skip`.
        before: updates skipped in a row up to here.
        logs: this rank logs it.

    Returns:
        Updates skipped in a row.

    Raises:
        NotFiniteError: they are not, and the run stops.
    """
    bad = [what for what in ("loss", "gradient_norm") if not math.isfinite(values[what])]
    values["skipped"] = float(bool(bad))
    if not bad:
        return 0
    what = (
        f"the loss is {values['loss']}"
        if "loss" in bad
        else f"the gradient's norm is {values['gradient_norm']}, though the loss is finite,"
    )
    if on_nonfinite == "stop" or before + 1 >= _MOST_SKIPPED:
        so_far = f" ({before + 1} updates in a row were skipped)" if before else ""
        raise NotFiniteError(
            f"{name}: {what} at step {step + 1}{so_far}; lower the learning rate (no weight was changed, and the "
            "last good run state is kept)"
        )
    if logs:
        logger.warning("%s: %s at step %d: the update is skipped on every rank", name, what, step + 1)
    return before + 1


def finite_weights(stage: Stage, engine: Engine) -> bool:
    """Whether every number that trains is finite, on every rank (collectives)."""
    parameters = [p for _, group in stage.groups() for p in group]
    with engine.whole(parameters):
        broken = any(not bool(torch.isfinite(p.detach()).all()) for p in parameters)
    return engine.sum([float(broken)])[0] == 0
