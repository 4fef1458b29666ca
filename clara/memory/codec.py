"""Codecs: how memory is stored in a shard's tensors. `CODECS` is the table of them; a new codec is one entry there.

| codec | memory token of D numbers | bytes |
|---|---|---|
| `float16` | rounded | 2·D |
| `int8` | integers to ±127, one scale | D + 4 |
| `int4` | integers to ±7, two in a byte, one scale (float16) for each 64 numbers | 0.53·D |
| `pq4`, `pq8` | product quantisation: a byte for 4 or 8 numbers, one scale, a codebook in MEMORY | D/4 + 4, D/8 + 4 |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clara.arrays import Floats
from clara.errors import InputError
from clara.memory.product_quantiser import Codebook, load_codebook, padded
from clara.storage.paths import Name

Tensors = Mapping[str, NDArray[Any]]
Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
GROUP = 64
"""Numbers that share a scale in `int4`."""
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Codec:
    """One way to store memory of M memory tokens of D numbers.

    Attributes:
        layout: (M, D) → type and shape of a row in each tensor.
        encode: (memory `[rows, M, D]`, codebook or None) → the tensors, as `layout` describes them.
        decode: (the tensors, D, codebook or None) → memory `[rows, M, D]` in float32.
        limit: largest absolute number that it can store.
        codebook_width: numbers that a byte of the codebook encodes; 0: the codec has no codebook.
    """

    layout: Callable[[int, int], Layout]
    encode: Callable[[Floats, Codebook | None], Tensors]
    decode: Callable[[Tensors, int, Codebook | None], Floats]
    limit: float = np.inf
    codebook_width: int = 0

    @property
    def has_codebook(self) -> bool:
        """Whether a codebook is trained for each MEMORY."""
        return self.codebook_width > 0


def _integers(memory: Floats, scale: NDArray[Any], largest: int) -> NDArray[np.float32]:
    """Memory as whole numbers of `scale [...]`, which belongs to the last axis; a scale of 0 counts as 1."""
    divisor = np.where(scale > 0, scale, scale.dtype.type(1)).astype(np.float32)[..., None]
    return np.clip(np.rint(memory / divisor), -largest, largest)


def _encode_int8(memory: Floats, _: Codebook | None) -> Tensors:
    """round(x / s) with s = max|x| / 127 of each memory token: an error of at most s / 2 in each number."""
    scale = (np.abs(memory).max(axis=-1, initial=0.0) / 127.0).astype(np.float32)
    return {"memory": _integers(memory, scale, 127).astype(np.int8), "scale": scale}


def _decode_int8(stored: Tensors, _: int, __: Codebook | None) -> Floats:
    return stored["memory"].astype(np.float32) * stored["scale"][..., None]


def _encode_int4(memory: Floats, _: Codebook | None) -> Tensors:
    """round(x / s) with s = max|x| / 7 of each 64 numbers, two of them in a byte."""
    wide = padded(memory, GROUP)
    grouped = wide.reshape(*memory.shape[:-1], wide.shape[-1] // GROUP, GROUP)
    scale = (np.abs(grouped).max(axis=-1, initial=0.0) / 7.0).astype(np.float16)
    codes = (_integers(grouped, scale, 7) + 8).astype(np.uint8).reshape(wide.shape)
    codes = codes[..., : memory.shape[-1] + memory.shape[-1] % 2]
    return {"memory": codes[..., ::2] | codes[..., 1::2] << 4, "scale": scale}


def _decode_int4(stored: Tensors, hidden_size: int, _: Codebook | None) -> Floats:
    packed = stored["memory"]
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])
    scale = np.repeat(stored["scale"].astype(np.float32), GROUP, axis=-1)[..., :hidden_size]
    return (codes[..., :hidden_size].astype(np.float32) - 8) * scale


def _product_quantised(width: int) -> Codec:
    """The codec whose bytes encode `width` numbers each."""

    def book(codebook: Codebook | None) -> Codebook:
        if codebook is None:
            raise InputError(f"codec pq{width}: needs the codebook of its MEMORY; give the store's own")
        return codebook

    def encode(memory: Floats, codebook: Codebook | None) -> Tensors:
        codes, scale = book(codebook).encode(memory)
        return {"memory": codes, "scale": scale}

    return Codec(
        layout=lambda tokens, size: {
            "memory": _row(np.uint8, tokens, -(-size // width)),
            "scale": _row(np.float32, tokens),
        },
        encode=encode,
        decode=lambda stored, size, codebook: book(codebook).decode(stored["memory"], stored["scale"], size),
        codebook_width=width,
    )


def _row(kind: type[np.generic], *shape: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    return np.dtype(kind), shape


CODECS: dict[str, Codec] = {
    "float16": Codec(
        layout=lambda tokens, size: {"memory": _row(np.float16, tokens, size)},
        encode=lambda memory, _: {"memory": memory.astype(np.float16)},
        decode=lambda stored, _, __: stored["memory"].astype(np.float32),
        limit=_LARGEST_FLOAT16,
    ),
    "int8": Codec(
        layout=lambda tokens, size: {"memory": _row(np.int8, tokens, size), "scale": _row(np.float32, tokens)},
        encode=_encode_int8,
        decode=_decode_int8,
    ),
    "int4": Codec(
        layout=lambda tokens, size: {
            "memory": _row(np.uint8, tokens, -(-size // 2)),
            "scale": _row(np.float16, tokens, -(-size // GROUP)),
        },
        encode=_encode_int4,
        decode=_decode_int4,
        limit=7 * _LARGEST_FLOAT16,
    ),
    "pq4": _product_quantised(4),
    "pq8": _product_quantised(8),
}


def codec_named(name: str) -> Codec:
    """The codec of a name.

    Raises:
        InputError: an unknown codec.
    """
    if name not in CODECS:
        raise InputError(f"codec {name!r}: expected one of {', '.join(CODECS)}")
    return CODECS[name]


def layout(codec: str, num_memory_tokens: int, hidden_size: int) -> Layout:
    """Type and shape of a row in each tensor that a codec stores.

    Raises:
        InputError: an unknown codec.
    """
    return codec_named(codec).layout(num_memory_tokens, hidden_size)


def check_memory(memory: Floats, codec: str) -> None:
    """Refuse memory that a codec can't store.

    Raises:
        InputError: an unknown codec, or a number that is not finite or too large for it.
    """
    limit = codec_named(codec).limit
    largest = float(np.abs(memory).max(initial=0.0))
    if not np.isfinite(largest):
        raise InputError("memory: holds numbers that are not finite; the compressor is broken")
    if largest > limit:
        raise InputError(f"memory: the largest number is {largest:.6g}, {codec} ends at {limit:.0f}; use codec int8")


def encode_memory(memory: Floats, codec: str, codebook: Codebook | None = None) -> dict[str, NDArray[Any]]:
    """Tensors that store `memory [rows, M, D]`, see `layout`.

    Raises:
        InputError: see `check_memory`; or the codec needs a codebook and none is given.
    """
    check_memory(memory, codec)
    return dict(CODECS[codec].encode(memory, codebook))


def decode_memory(stored: Tensors, codec: str, hidden_size: int, codebook: Codebook | None = None) -> Floats:
    """`[rows, M, D]` in float32 from the result of `encode_memory`.

    Raises:
        InputError: an unknown codec, or it needs a codebook and none is given.
    """
    return codec_named(codec).decode(stored, hidden_size, codebook)


def codebook_of(directory: Name, codec: str, hidden_size: int) -> Codebook | None:
    """The codebook of a MEMORY; None if its codec has none.

    Raises:
        InputError: an unknown codec, or the codebook is missing or damaged.
    """
    width = codec_named(codec).codebook_width
    return load_codebook(directory, width, hidden_size) if width else None
