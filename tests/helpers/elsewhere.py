"""A device of which everything is true but that it exists: numbers on the CPU, behind tensors that say they are not.

A CPU build has no second device, so that a tensor on the wrong one is found on a GPU only. Here torch's spare device
type gets a name; tensors on it keep their numbers in CPU memory, and an operation that a GPU would refuse because its
operands are on different devices is refused. Numbers are computed, unlike under `FakeTensorMode`, since steps and
decoding read them (which rows are selected, which token comes next), and the results must be those of the CPU.

Attention takes the plain way of torch (matrix products and a softmax): this device has no fused kernel.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_aten = torch.ops.aten
_MOVES = {_aten._to_copy.default, _aten.copy_.default, _aten._foreach_copy_.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_CHOICE = _aten._fused_sdp_choice.default


class WrongDeviceError(RuntimeError):
    """An operation has tensors on the CPU and on the other device."""


class _Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        yield


def register() -> torch.device:
    """Give the spare device type its name; once in a process. Returns the device."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    # A parameter that moves stays the same object, as it does on the way to a GPU, so that tied weights stay tied.
    torch.__future__.set_swap_module_params_on_conversion(True)
    return torch.device(NAME, 0)


class Elsewhere(torch.Tensor):
    """A tensor on the other device.

    Attributes:
        held: its numbers, on the CPU.
    """

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device(NAME, 0)
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        """The numbers; torch's own reads no subclass."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as by a GPU."""
        raise WrongDeviceError(f"numpy(): this tensor is on {NAME}; expected the CPU")

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class OtherDevice(TorchDispatchMode):
    """Inside, tensors may be made on, and moved to, the other device."""

    def __enter__(self) -> "OtherDevice":
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) moves where this mode can see it
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation on the held numbers; its result is where a device would have put it."""
    tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
    asked = kwargs.get("device")
    here = any(isinstance(t, Elsewhere) for t in tensors)
    if func is _CHOICE and here:
        return 0  # the plain way
    _refuse_mixed(func, args, tensors)
    away = here if asked is None else torch.device(asked).type == NAME
    if func is _aten.copy_.default:
        away = isinstance(args[0], Elsewhere)
    if not here and not away:
        return func(*args, **kwargs)
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    plain_args, plain_kwargs = tree_map(_held, (tuple(args), kwargs))
    if func is _aten._to_copy.default and away != here and plain_kwargs.get("dtype") is None:
        found = args[0].held.clone() if here else args[0].clone()  # a copy even where the CPU would need none
    else:
        found = func(*plain_args, **plain_kwargs)
    if not away:
        return found
    wrapped = tree_map(lambda t: Elsewhere(t) if isinstance(t, torch.Tensor) else t, found)
    return return_and_correct_aliasing(func, tuple(args), kwargs, wrapped)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _refuse_mixed(func: Any, args: Sequence[Any], tensors: Sequence[torch.Tensor]) -> None:
    """Raise where a GPU would: numbers of no dimension may be on the CPU, and so may indices."""
    if func in _MOVES:
        return
    if func in _INDEXED:
        tensors = [t for t in tree_iter((args[0], args[2:])) if isinstance(t, torch.Tensor)]
        if not isinstance(args[0], Elsewhere):
            tensors = [*tensors, *(t for t in tree_iter(args[1]) if isinstance(t, Elsewhere))]
    places = {isinstance(t, Elsewhere) for t in tensors if isinstance(t, Elsewhere) or t.dim()}
    if len(places) > 1:
        shapes = ", ".join(f"{NAME if isinstance(t, Elsewhere) else 'cpu'} {list(t.shape)}" for t in tensors)
        raise WrongDeviceError(f"{func}: expected all tensors on one device, found {shapes}")
