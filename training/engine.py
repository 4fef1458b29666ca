"""What differs between one torch process and DeepSpeed under Ray: backward, update, collectives, resume files."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clara.config import Optimiser
from clara.steps import Output


class Engine(ABC):
    """Optimises a step module on one rank of `world`."""

    rank = 0
    world = 1
    module: nn.Module

    @abstractmethod
    def forward(self, batch: Any, normaliser: float, num_rows: float) -> Output:
        """The step module's loss and figures."""

    @abstractmethod
    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate gradients; `last` closes the step's accumulation."""

    @abstractmethod
    def update(self, factors: Sequence[float]) -> float:
        """One optimiser step at `factors` times the groups' configured rates; returns the gradient norm before clipping.

        A group of factor 0 keeps its weights to the bit, whether a gradient reached it or not. A norm that is not finite changes no weight,
        and the gradient is dropped.
        """

    @abstractmethod
    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64: a collective that every rank makes."""

    @abstractmethod
    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor `[world, …]`, in order of rank: a collective with one shape and type on all ranks."""

    @contextmanager
    def whole(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Inside, these parameters are whole on every rank, as writing a portable CHECKPOINT needs it (every rank enters)."""
        yield

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write weights and optimiser state for resuming (every rank calls it)."""

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Take weights and optimiser state from the run's own directory (every rank calls it)."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here."""


def parameter_groups(groups: Sequence[tuple[float, list[nn.Parameter]]], settings: Optimiser) -> list[dict[str, Any]]:
    """AdamW's groups: each with its own rate."""
    return [{"params": params, "lr": rate, "initial_lr": rate, "weight_decay": settings.weight_decay} for rate, params in groups]


class LocalEngine(Engine):
    """One plain torch process: parameters in float32, cast inside the layers."""

    def __init__(self, module: nn.Module, groups: Sequence[tuple[float, list[nn.Parameter]]], settings: Optimiser) -> None:
        self.module = module
        self._settings = settings
        self._parameters = [p for _, params in groups for p in params]
        self._optimiser = torch.optim.AdamW(parameter_groups(groups, settings), betas=settings.betas, weight_decay=settings.weight_decay)

    def forward(self, batch: Any, normaliser: float, num_rows: float) -> Output:
        """See the base class."""
        output: Output = self.module(batch, normaliser, num_rows)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """See the base class."""
        loss.backward()

    def update(self, factors: Sequence[float]) -> float:
        """See the base class."""
        limit = self._settings.gradient_clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        if not math.isfinite(norm):
            self._optimiser.zero_grad(set_to_none=True)
            return norm
        for group, factor in zip(self._optimiser.param_groups, factors, strict=True):
            group["lr"] = group["initial_lr"] * factor
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return norm

    def sum(self, values: Sequence[float]) -> list[float]:
        """See the base class."""
        return [float(v) for v in values]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        return rows[None]

    def save(self, directory: Path) -> None:
        """See the base class."""
        directory.mkdir(parents=True, exist_ok=True)
        state = {"parameters": [p.detach() for p in self._parameters], "optimiser": self._optimiser.state_dict()}
        partial = directory / f".state.{os.getpid()}"
        torch.save(state, partial)
        os.replace(partial, directory / "state.pt")

    def load(self, directory: Path) -> None:
        """See the base class."""
        state = torch.load(directory / "state.pt", weights_only=True)
        with torch.no_grad():
            for parameter, saved in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self._optimiser.load_state_dict(state["optimiser"])

    def barrier(self) -> None:
        """See the base class."""


EngineFactory = Callable[[nn.Module, Sequence[tuple[float, list[nn.Parameter]]], Optimiser], Engine]
