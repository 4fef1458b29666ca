"""LoRA adapters whose choice is an argument of a pass, kept in PEFT's own files.

PEFT's `set_adapter` toggles `requires_grad`, which ZeRO has recorded by then, and its `adapter_names` refuses to run in
training mode: so the routing is here, and only the file format is PEFT's. The choice is a context variable that is set
for the duration of a pass, and again for the recomputation of a checkpointed layer; it leaves no state behind and
differs from thread to thread.
"""

import json
import math
import os
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from clara.config.model import Lora
from clara.errors import InputError
from clara.storage.folders import atomic_write

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Route:
    """What a pass uses: the adapter's name (None: the plain LM) and whether its dropout is on."""

    adapter: str | None = None
    dropout: bool = False


_ROUTE: ContextVar[Route] = ContextVar("route", default=Route())


class routed:  # noqa: N801
    """Passes inside this context use this route.

    It may be entered again, as each recomputation of a checkpointed layer does.
    """

    def __init__(self, route: Route) -> None:
        self._route = route
        self._tokens: list[Token[Route]] = []

    def __enter__(self) -> None:
        self._tokens.append(_ROUTE.set(self._route))

    def __exit__(self, *error: object) -> None:
        _ROUTE.reset(self._tokens.pop())


def current_route() -> Route:
    """The route of the pass that is under way."""
    return _ROUTE.get()


class LoraPair(nn.Module):
    """One adapter's update of one linear layer: x ↦ scale · B A x. Its forward owns its parameters, as ZeRO-3 wants."""

    def __init__(self, num_inputs: int, num_outputs: int, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = dropout
        self.lora_A = nn.Parameter(torch.empty(rank, num_inputs))
        self.lora_B = nn.Parameter(torch.zeros(num_outputs, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor, dropout: bool) -> Tensor:
        """The update for `x [..., inputs]`, in the type of `x`."""
        if dropout and self.dropout:
            x = nn.functional.dropout(x, self.dropout)
        # Scaled where it is narrow: a pass over all outputs takes as long as a good part of a bfloat16 product.
        hidden = nn.functional.linear(x, self.lora_A.to(x.dtype)) * self.scale
        return nn.functional.linear(hidden, self.lora_B.to(x.dtype))


class RoutedLinear(nn.Module):
    """A frozen linear layer with any number of adapters; the pass says which one is added.

    Attributes:
        merged: layer and adapter in one, of adapters that no longer train (see `clara.model.int8`).
    """

    def __init__(self, base: nn.Linear | Conv1D) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.merged: dict[str, Callable[[Tensor], Tensor]] = {}

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of inputs and outputs; GPT-2's layers hold their matrix the other way round."""
        num_rows, num_columns = self.base.weight.shape
        return (num_rows, num_columns) if isinstance(self.base, Conv1D) else (num_columns, num_rows)

    @property
    def weight(self) -> Tensor:
        """The matrix `[outputs, inputs]` without adapters."""
        return self.base.weight.T if isinstance(self.base, Conv1D) else self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output under the current route."""
        route = _ROUTE.get()
        if route.adapter in self.merged:
            return self.merged[route.adapter](x)
        output: Tensor = self.base(x)
        if route.adapter is None:
            return output
        update: Tensor = self.adapters[route.adapter](x, route.dropout)
        return output + update


def install(trunk: nn.Module) -> dict[str, RoutedLinear]:
    """Replace every linear layer below `trunk` by a routed one. Returns them by their path."""
    found = {name: module for name, module in trunk.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    routed_layers = {}
    for name, linear in found.items():
        parent, _, child = name.rpartition(".")
        routed_layers[name] = RoutedLinear(linear)
        setattr(trunk.get_submodule(parent), child, routed_layers[name])
    return routed_layers


def add_adapter(layers: dict[str, RoutedLinear], adapter: str, settings: Lora) -> None:
    """A fresh adapter (B = 0: no change of the LM) on every routed layer."""
    for layer in layers.values():
        pair = LoraPair(
            *layer.sizes, rank=settings.rank, scale=settings.alpha / settings.rank, dropout=settings.dropout
        )
        layer.adapters[adapter] = pair.to(layer.base.weight.device)


def copy_adapter(layers: dict[str, RoutedLinear], source: str, target: str) -> None:
    """Give `target` the weights of `source`; both must exist."""
    with torch.no_grad():
        for layer in layers.values():
            layer.adapters[target].load_state_dict(layer.adapters[source].state_dict())


def restart_adapter(layers: dict[str, RoutedLinear], adapter: str) -> None:
    """Take an adapter back to where it changes nothing (B = 0)."""
    with torch.no_grad():
        for layer in layers.values():
            cast(LoraPair, layer.adapters[adapter]).lora_B.zero_()


def parameters(layers: dict[str, RoutedLinear], adapter: str) -> list[nn.Parameter]:
    """An adapter's parameters in a fixed order."""
    return [p for layer in layers.values() for p in layer.adapters[adapter].parameters()]


def adapter_tensors(layers: dict[str, RoutedLinear], adapter: str, trunk_path: str) -> dict[str, Tensor]:
    """An adapter's tensors under PEFT's names; `trunk_path` is the trunk's path in the LM (`model` for most)."""
    prefix = f"{PREFIX}{trunk_path}." if trunk_path else PREFIX
    tensors = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            tensors[f"{prefix}{name}.{part}.weight"] = getattr(layer.adapters[adapter], part)
    return tensors


def save_adapter(
    layers: dict[str, RoutedLinear],
    adapter: str,
    directory: str | os.PathLike[str],
    settings: Lora,
    *,
    trunk_path: str,
    base: str,
    dtype: torch.dtype,
) -> list[str]:
    """Write an adapter as a PEFT folder. Returns the file names.

    Args:
        layers: those of the backbone.
        adapter: its name.
        directory: is made.
        settings: of the adapter.
        trunk_path: path of the trunk in the LM.
        base: folder of the LM, which PEFT reads.
        dtype: of the stored numbers.
    """
    directory = Path(directory)
    tensors = {
        k: v.detach().to("cpu", dtype).contiguous() for k, v in adapter_tensors(layers, adapter, trunk_path).items()
    }
    atomic_write(directory / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "inference_mode": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
    }
    atomic_write(directory / "adapter_config.json", json.dumps(config, indent=1) + "\n")
    return ["adapter_config.json", "adapter_model.safetensors"]


def load_adapter(
    layers: dict[str, RoutedLinear], adapter: str, directory: str | os.PathLike[str], *, trunk_path: str
) -> None:
    """Read a PEFT folder into an adapter that exists.

    Raises:
        InputError: the file is missing or unreadable, or a tensor is missing, superfluous, or of another shape.
    """
    path = Path(directory) / "adapter_model.safetensors"
    wanted = adapter_tensors(layers, adapter, trunk_path)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own types for every kind of damage
        raise InputError(f"{path}: not readable as safetensors ({error}); take an intact checkpoint") from error
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise InputError(
            f"{path}: {len(missing)} tensors missing (first: {missing[:1]}), {len(extra)} unknown (first: "
            f"{extra[:1]}); "
            "this adapter is for another backbone, or damaged"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != found[name].shape:
                raise InputError(
                    f"{path}: {name} has shape {list(found[name].shape)}, expected {list(parameter.shape)}; this "
                    "adapter is for another backbone or rank"
                )
            parameter.copy_(found[name])
