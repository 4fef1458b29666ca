"""One rule of arithmetic: losses and scores are computed in float32 at least."""

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it already is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
