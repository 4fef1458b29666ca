"""The type that a compressor computes in: that of its LM, or int8, in which only compression computes."""

from typing import Literal

from clara.errors import InputError

INT8 = "int8"


def type_of_lm(dtype: str) -> Literal["float32", "bfloat16"]:
    """Type of the LM that compresses in `dtype`, and that reads such a MEMORY: with int8 it is float32."""
    return "bfloat16" if dtype == "bfloat16" else "float32"


def check_encoding(dtype: str, device: str) -> None:
    """Refuse int8 where it is not computed.

    Raises:
        InputError: the device is not the CPU.
    """
    if dtype == INT8 and device != "cpu":
        raise InputError(
            f"--dtype {INT8} with --device {device}: int8 is computed on a CPU only; give --device cpu, or --dtype "
            "bfloat16, which is fast on a GPU"
        )
