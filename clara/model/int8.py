"""Linear layers in int8 on a CPU: weights by output channel, activations by token.

A token's products depend on no other token: they are exact sums of integers, the same in any batch and on any
processor. Weights have 7 bits: processors without VNNI add pairs of products in 16 bits, which hold 2 · 255 · 63.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from clara.errors import InputError
from clara.model.lora import LoraPair, RoutedLinear

_WEIGHT_LEVELS = 63
_LEVELS, _ZERO = 127, 128  # an activation is stored as level + zero, 1 to 255
_SMALLEST = 1e-20  # of a peak, where a token's activations are all 0


class Int8Linear:
    """A linear layer x ↦ W x + b, whose products are of integers.

    With w = max|W_o| / 63 of each output o and s = max|x| / 127 of each token: w s · (round(W_o / w) · round(x / s)).
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Round and pack a matrix `[outputs, inputs]` in float32."""
        scale_O = weight_OI.abs().amax(dim=1).clamp_min(_SMALLEST) / _WEIGHT_LEVELS
        rounded_OI = (weight_OI / scale_O[:, None]).round().to(torch.int8).contiguous()
        self._packed = torch.ops.onednn.qlinear_prepack(rounded_OI, None)
        self._scale_O, self._zeros_O = scale_O, torch.zeros(len(scale_O), dtype=torch.int32)
        self._bias_O = bias_O

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output for `x [..., inputs]` in float32, without gradient."""
        scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(_SMALLEST) / _LEVELS
        rounded = (x / scale).round_().add_(_ZERO).to(torch.uint8)
        output: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, _ZERO, self._packed, self._scale_O, self._zeros_O, None, 1.0, 0, torch.float32, "none", [], ""
        )
        output = output.mul_(scale)
        return output if self._bias_O is None else output.add_(self._bias_O)


@torch.no_grad()
def merge_in_int8(layers: Mapping[str, RoutedLinear], adapter: str) -> None:
    """Compute passes of an adapter in int8 from now on: of each layer one matrix, W + scale · B A, which is a copy.

    Raises:
        InputError: this build of torch has no int8 products for this processor.
    """
    for layer in layers.values():
        pair = cast(LoraPair, layer.adapters[adapter])
        merged_OI = layer.weight + pair.scale * pair.lora_B @ pair.lora_A
        try:
            layer.merged[adapter] = Int8Linear(merged_OI, layer.base.bias)
        except (RuntimeError, AttributeError) as error:
            raise InputError(
                f"dtype int8: this build of torch has no int8 products for this processor ({error}); take float32"
            ) from error
