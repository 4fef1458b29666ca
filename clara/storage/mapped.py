"""Safetensors files as NumPy arrays: as read-only maps of the disk, or read into memory as float32."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from clara.errors import InputError

_NUMPY_TYPES = {"F16": np.float16, "F32": np.float32, "I8": np.int8, "U8": np.uint8}


def map_tensors(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """A safetensors file's tensors as read-only maps of the disk: nothing is read but the header.

    Raises:
        InputError: not a safetensors file, cut short, or with a type that MEMORY has not.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if size < 8 or header_bytes > size - 8:
                raise ValueError(f"a header of {header_bytes} bytes in a file of {size}")
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            kind, shape, (begin, end) = (
                np.dtype(_NUMPY_TYPES[entry["dtype"]]),
                tuple(entry["shape"]),
                entry["data_offsets"],
            )
            offset = 8 + header_bytes + begin
            if end - begin != kind.itemsize * int(np.prod(shape)) or offset + end - begin > size:
                raise ValueError(f"{name} {list(shape)} does not fit its {end - begin} bytes")
            tensors[name] = np.memmap(path, kind, "r", offset, shape) if end > begin else np.empty(shape, kind)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a memory file ({error}); make the MEMORY again, or copy it again") from error
    return tensors


def read_floats(path: str | os.PathLike[str]) -> dict[str, NDArray[np.float32]]:
    """A safetensors file's floating-point tensors in float32, bfloat16 included, which NumPy does not have.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is not a safetensors file.
        KeyError: a tensor has another type.
    """
    tensors = {}
    for name, entry in safetensors.deserialize(Path(path).read_bytes()):
        data, shape = entry["data"], entry["shape"]
        if entry["dtype"] == "BF16":  # the upper half of a float32
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data, _NUMPY_TYPES[entry["dtype"]]).astype(np.float32)
        tensors[name] = values.reshape(shape)
    return tensors


def as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values rounded to bfloat16, half to even, as PyTorch rounds; in NumPy, as importing PyTorch takes seconds."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nearest = (upper << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), nearest)
