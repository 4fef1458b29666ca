"""Safetensors files as read-only maps of the disk."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
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
