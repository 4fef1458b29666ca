"""What a benchmark ran on, and the file that its results go to."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clara.model.precision import multiplies_bfloat16
from clara.storage.folders import atomic_write
from clara.storage.manifest import versions
from infra.hardware import processor

RESULTS = Path(__file__).resolve().parents[1] / "infra" / "results"


def environment(module: str) -> dict[str, Any]:
    """Command, versions and hardware, for a result that somebody else will compare with."""
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "versions": versions(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "bfloat16_products": multiplies_bfloat16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "load_average": [round(v, 2) for v in os.getloadavg()],
    }


def save(folder: Path, result: Mapping[str, Any], markdown: str) -> None:
    """Write `results.json` and `results.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "results.json", json.dumps(result, indent=1) + "\n")
    atomic_write(folder / "results.md", markdown)
