"""The GPU that a job requests from Dataflow."""

import re

from clara.errors import InputError
from pipelines.engines.names import DATAFLOW

_GPU_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")


def gpu_hint(gpu_type: str, gpu_count: int, *, runner: str, device: str) -> str:
    """Beam's resource hint for the stages that compress; empty if the job requests no GPU.

    Args:
        gpu_type: Google Cloud's name of the GPU, e.g. `nvidia-l4`; empty: none.
        gpu_count: GPUs per machine.
        runner: name of the runner.
        device: device of the model.

    Raises:
        InputError: the arguments contradict each other.
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
