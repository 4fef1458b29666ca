"""Which GPU a job asks Dataflow for."""

import re

from clara.errors import InputError
from pipelines.engines.names import DATAFLOW

_GPU_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")


def gpu_hint(gpu_type: str, gpu_count: int, *, runner: str, device: str) -> str:
    """Beam's resource hint for the compressing stages; empty where they need no GPU of their own.

    Args:
        gpu_type: as Google Cloud names it, `nvidia-l4`; empty: none.
        gpu_count: GPUs of a machine.
        runner: where the job runs.
        device: that the model is to run on.

    Raises:
        InputError: these do not go together.
    """
    if not gpu_type:
        if runner == DATAFLOW and device.startswith("cuda"):
            raise InputError(
                f"--device {device}: Dataflow's machines have no GPU unless the job asks for one; give --gpu-type, "
                "as nvidia-l4"
            )
        return ""
    if runner != DATAFLOW:
        raise InputError(
            f"--gpu-type {gpu_type}: only {DATAFLOW} chooses machines by it; "
            "elsewhere start the workers on machines with GPUs and give --device cuda"
        )
    if not _GPU_NAME.fullmatch(gpu_type):
        raise InputError(
            f"--gpu-type {gpu_type!r}: expected Google Cloud's name of a GPU, as nvidia-l4 or nvidia-tesla-t4"
        )
    if gpu_count < 1:
        raise InputError(f"--gpu-count {gpu_count}: expected 1 or more, GPUs of a machine")
    if not device.startswith("cuda"):
        raise InputError(f"--device {device}: would leave the GPUs of --gpu-type {gpu_type} idle; give --device cuda")
    return f"type:{gpu_type};count:{gpu_count};install-nvidia-driver"
