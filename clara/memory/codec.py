"""Codecs: how memory is stored in a shard's tensors.

| codec | memory token of D numbers | bytes |
|---|---|---|
| `float16` | rounded | 2·D |
| `int8` | integers to ±127, one scale | D + 4 |
| `int4` | integers to ±7, two in a byte, one scale (float16) for each 64 numbers | 0.53·D |
| `pq4`, `pq8` | product quantisation: a byte for each 4 or 8 numbers, one scale; the codebook stands in MEMORY | D/4 + 4, D/8 + 4 |
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clara.errors import InputError
from clara.memory.product_quantiser import Codebook, padded

Floats = NDArray[np.float32]
CODECS = ("float16", "int8", "int4", "pq4", "pq8")
LARGEST_FLOAT16 = 65504.0
GROUP = 64
"""Numbers that share a scale in `int4`."""


def pq_width(codec: str) -> int:
    """Numbers that a byte stands for in a product-quantised codec; 0: the codec is another, and needs no codebook.

    Raises:
        InputError: an unknown codec.
    """
    if codec not in CODECS:
        raise InputError(f"codec {codec!r}: expected one of {', '.join(CODECS)}")
    return int(codec[2:]) if codec.startswith("pq") else 0


def layout(codec: str, num_memory_tokens: int, hidden_size: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of a row in each tensor that a codec stores, M memory tokens of D numbers.

    Raises:
        InputError: an unknown codec.
    """
    rows, width = num_memory_tokens, pq_width(codec)
    if codec == "float16":
        return {"memory": (np.dtype(np.float16), (rows, hidden_size))}
    if codec == "int8":
        return {"memory": (np.dtype(np.int8), (rows, hidden_size)), "scale": (np.dtype(np.float32), (rows,))}
    if codec == "int4":
        groups = -(-hidden_size // GROUP)
        return {
            "memory": (np.dtype(np.uint8), (rows, -(-hidden_size // 2))),
            "scale": (np.dtype(np.float16), (rows, groups)),
        }
    return {"memory": (np.dtype(np.uint8), (rows, -(-hidden_size // width))), "scale": (np.dtype(np.float32), (rows,))}


def check_memory(memory: Floats, codec: str) -> None:
    """Refuse memory that a codec can't hold.

    Raises:
        InputError: an unknown codec, or a number that is not finite or too large for it.
    """
    pq_width(codec)
    largest = float(np.abs(memory).max(initial=0.0))
    if not np.isfinite(largest):
        raise InputError("memory: holds numbers that are not finite; the compressor is broken")
    limit = {"float16": LARGEST_FLOAT16, "int4": 7 * LARGEST_FLOAT16}.get(codec, np.inf)
    if largest > limit:
        raise InputError(f"memory: the largest number is {largest:.6g}, {codec} ends at {limit:.0f}; use codec int8")


def encode_memory(memory: Floats, codec: str, codebook: Codebook | None = None) -> dict[str, NDArray[Any]]:
    """Tensors that store `memory [rows, M, D]`, as `layout` says.

    `int8` keeps round(x / s) with s = max|x| / 127 of each memory token: an error of at most s / 2 a number. `int4`
    keeps it with s = max|x| / 7 of each 64 numbers.

    Raises:
        InputError: see `check_memory`; or a codebook is needed and there is none.
    """
    check_memory(memory, codec)
    if codec == "float16":
        return {"memory": memory.astype(np.float16)}
    if codec == "int8":
        scale = (np.abs(memory).max(axis=-1, initial=0.0) / 127.0).astype(np.float32)
        divisor = np.where(scale > 0, scale, 1.0)[..., None]
        return {"memory": np.clip(np.rint(memory / divisor), -127, 127).astype(np.int8), "scale": scale}
    if codec == "int4":
        return _encode_int4(memory)
    codes, scale = _needed(codebook, codec).encode(memory)
    return {"memory": codes, "scale": scale}


def decode_memory(
    stored: Mapping[str, NDArray[Any]], codec: str, hidden_size: int, codebook: Codebook | None = None
) -> Floats:
    """`[rows, M, D]` in float32 from what `encode_memory` gave.

    Raises:
        InputError: an unknown codec, or a codebook is needed and there is none.
    """
    if pq_width(codec):
        return _needed(codebook, codec).decode(stored["memory"], stored["scale"], hidden_size)
    if codec == "int4":
        return _decode_int4(stored, hidden_size)
    memory = stored["memory"].astype(np.float32)
    return memory * stored["scale"][..., None] if codec == "int8" else memory


def _needed(codebook: Codebook | None, codec: str) -> Codebook:
    if codebook is None:
        raise InputError(f"codec {codec}: needs the codebook of its MEMORY; give the store's own")
    return codebook


def _encode_int4(memory: Floats) -> dict[str, NDArray[Any]]:
    wide = padded(memory, GROUP)
    grouped = wide.reshape(*memory.shape[:-1], wide.shape[-1] // GROUP, GROUP)
    scale = (np.abs(grouped).max(axis=-1, initial=0.0) / 7.0).astype(np.float16)
    divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)[..., None]
    codes = (np.clip(np.rint(grouped / divisor), -7, 7) + 8).astype(np.uint8).reshape(wide.shape)
    codes = codes[..., : memory.shape[-1] + memory.shape[-1] % 2]
    return {"memory": codes[..., ::2] | codes[..., 1::2] << 4, "scale": scale}


def _decode_int4(stored: Mapping[str, NDArray[Any]], hidden_size: int) -> Floats:
    packed = stored["memory"]
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])[
        ..., :hidden_size
    ]
    scale = np.repeat(stored["scale"].astype(np.float32), GROUP, axis=-1)[..., :hidden_size]
    return (codes.astype(np.float32) - 8) * scale
