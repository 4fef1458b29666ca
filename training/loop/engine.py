"""What differs between one torch process and DeepSpeed under Ray: backward, update, collectives, resume files."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from clara.config.stages import Optimiser
from clara.model.steps import Output


class Collectives(Protocol):
    """What ranks exchange; see `Engine`."""

    rank: int
    world: int

    def sum(self, values: Sequence[float]) -> list[float]:
        """See `Engine.sum`."""
        ...

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Engine.gather`."""
        ...


class OneRank:
    """The collectives of one process."""

    rank = 0
    world = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """See `Engine.sum`."""
        return [float(v) for v in values]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Engine.gather`."""
        return rows[None]


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
        """One optimiser step at `factors` times the groups' learning rates; returns the gradient norm before clipping.

        A group of factor 0 keeps its weights to the bit, whether a gradient reached it or not. A norm that is not
        finite changes no weight, and the gradient is dropped.
        """

    @abstractmethod
    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64: a collective that every rank makes."""

    @abstractmethod
    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor `[world, …]`, in order of rank: a collective with one shape and type on all ranks."""

    @contextmanager
    def whole(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Inside, these parameters are whole on every rank, to write a portable CHECKPOINT (every rank enters)."""
        yield

    @abstractmethod
    def gather_state(self) -> dict[str, torch.Tensor]:
        """Whole weights and optimiser state of what trains, on rank 0's CPU; nothing elsewhere (a collective).

        Names: `weight.`, `exp_avg.`, `exp_avg_sq.` and `step.`, then the parameter's own. Without the latter three, no
            update reached it yet.
        """

    @abstractmethod
    def take_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `gather_state` returned, on any number of ranks and by any engine (a collective).

        Raises:
            KeyError: they are of other parameters; its argument says which.
        """

    @abstractmethod
    def held_bytes(self) -> dict[str, int]:
        """Bytes held between two updates: `weights` (with the frozen LM's), `gradients` not yet used, `optimiser`."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here."""


MOMENTS = ("exp_avg", "exp_avg_sq")


def parameter_groups(groups: Sequence[tuple[float, list[nn.Parameter]]], settings: Optimiser) -> list[dict[str, Any]]:
    """AdamW's groups: each with its own rate."""
    return [
        {"params": params, "lr": rate, "initial_lr": rate, "weight_decay": settings.weight_decay}
        for rate, params in groups
    ]


def trained(module: nn.Module, parameters: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
    """Of a module's parameters these ones, by name, in the module's order."""
    wanted = {id(p) for p in parameters}
    return {name: p for name, p in module.named_parameters() if id(p) in wanted}


def check_state(own: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state of other parameters.

    Raises:
        KeyError: a name is missing or superfluous; the message says how many and the first.
    """
    found = {name.removeprefix("weight.") for name in tensors if name.startswith("weight.")}
    missing, extra = sorted(own.keys() - found), sorted(found - own.keys())
    if missing or extra:
        raise KeyError(
            f"{len(missing)} parameters are missing (first: {missing[:1]}), {len(extra)} do not train here (first: "
            f"{extra[:1]})"
        )


def storage_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's numbers."""
    return tensor.numel() * tensor.element_size()


class LocalEngine(OneRank, Engine):
    """One plain torch process: parameters in float32, cast inside the layers."""

    def __init__(
        self, module: nn.Module, groups: Sequence[tuple[float, list[nn.Parameter]]], settings: Optimiser
    ) -> None:
        self.module = module
        self._settings = settings
        self._parameters = [p for _, params in groups for p in params]
        self._optimiser = torch.optim.AdamW(
            parameter_groups(groups, settings), betas=settings.betas, weight_decay=settings.weight_decay
        )

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

    def gather_state(self) -> dict[str, torch.Tensor]:
        """See the base class."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter in trained(self.module, self._parameters).items():
            parts = {"weight": parameter.detach()} | dict(self._optimiser.state.get(parameter, {}))
            # Copies: they are written while the next step changes what they were made of.
            found |= {f"{part}.{name}": value.to("cpu", copy=True).contiguous() for part, value in parts.items()}
        return found

    def take_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See the base class."""
        own = trained(self.module, self._parameters)
        check_state(own, tensors)
        for name, parameter in own.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            if f"step.{name}" in tensors:
                moments = {part: tensors[f"{part}.{name}"].to(parameter.device, copy=True) for part in MOMENTS}
                self._optimiser.state[parameter] = {"step": tensors[f"step.{name}"].clone()} | moments

    def held_bytes(self) -> dict[str, int]:
        """See the base class."""
        return {
            "weights": sum(storage_bytes(p) for p in self.module.parameters()),
            "gradients": sum(storage_bytes(p) for p in self._parameters),
            "optimiser": sum(storage_bytes(v) for state in self._optimiser.state.values() for v in state.values()),
        }

    def barrier(self) -> None:
        """See the base class."""
