"""Codecs: how memory is stored in a shard's tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clara.errors import InputError

Floats = NDArray[np.float32]
CODECS = ("float16", "int8")
LARGEST_FLOAT16 = 65504.0


def layout(codec: str, num_memory_tokens: int, hidden_size: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of a row in each tensor that a codec stores, M memory tokens of D numbers.

    Raises:
        InputError: an unknown codec.
    """
    if codec == "float16":
        return {"memory": (np.dtype(np.float16), (num_memory_tokens, hidden_size))}
    if codec == "int8":
        return {"memory": (np.dtype(np.int8), (num_memory_tokens, hidden_size)), "scale": (np.dtype(np.float32), (num_memory_tokens,))}
    raise InputError(f"codec {codec!r}: expected one of {', '.join(CODECS)}")


def encode_memory(memory: Floats, codec: str) -> dict[str, NDArray[Any]]:
    """Tensors that store `memory [rows, M, D]`.

    `int8` keeps round(x / s) with s = max|x| / 127 of each memory token: an error of at most s / 2 a number.

    Raises:
        InputError: an unknown codec, or a number that is not finite or too large for float16.
    """
    largest = float(np.abs(memory).max(initial=0.0))
    if not np.isfinite(largest):
        raise InputError("memory: holds numbers that are not finite; the compressor is broken")
    if codec == "float16":
        if largest > LARGEST_FLOAT16:
            raise InputError(f"memory: the largest number is {largest:.6g}, float16 ends at {LARGEST_FLOAT16:.0f}; use codec int8")
        return {"memory": memory.astype(np.float16)}
    if codec == "int8":
        scale = (np.abs(memory).max(axis=-1, initial=0.0) / 127.0).astype(np.float32)
        divisor = np.where(scale > 0, scale, 1.0)[..., None]
        return {"memory": np.clip(np.rint(memory / divisor), -127, 127).astype(np.int8), "scale": scale}
    raise InputError(f"codec {codec!r}: expected one of {', '.join(CODECS)}")


def decode_memory(stored: Mapping[str, NDArray[Any]]) -> Floats:
    """`[rows, M, D]` in float32 from what `encode_memory` gave."""
    memory = stored["memory"].astype(np.float32)
    return memory * stored["scale"][..., None] if "scale" in stored else memory
