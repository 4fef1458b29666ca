"""Types of numbers: losses and scores in float32 at least, and whether a processor multiplies bfloat16 itself."""

import threading

import torch
from torch import Tensor

DEFAULT_TYPE = threading.Lock()
"""Held while transformers builds a model, as that sets the process's default type, and by what computes meanwhile."""


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it already is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products; emulated, they are slower than float32."""
    return any(bool(there) for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
