"""Steps of an experiment: commands that a user types, run one after another."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from clara.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = "infra/start/checkpoint"
# Unless the caller's own says otherwise. Threads that spin where they wait for each other are 20 times slower on cores
# that others use too.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
BAD_INPUT = 2  # exit status of a command whose input was refused


@dataclass(frozen=True)
class Step:
    """One command of the demo and what to call it."""

    title: str
    command: list[str]
    accepted: tuple[int, ...] = (0,)


def relative(path: Path) -> str:
    """A path as a user in the project's root would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def run_step(step: Step, number: int, total: int) -> float:
    """Run a step in the foreground and return its seconds.

    Raises:
        InputError: it failed; its own message stands above.
    """
    print(
        f"\n\033[1m[{number}/{total}] {step.title}\033[0m"
        if sys.stdout.isatty()
        else f"\n[{number}/{total}] {step.title}"
    )
    shown = ["python" if part == sys.executable else part for part in step.command]
    print(f"  $ {shlex.join(shown)}", flush=True)
    began = time.monotonic()
    status = subprocess.run(
        step.command, cwd=Path.cwd(), env=ENVIRONMENT | os.environ | {"PYTHONPATH": str(ROOT)}
    ).returncode
    if status not in step.accepted:
        then = "Mend what it names, then run" if status == BAD_INPUT else "Run"
        raise InputError(
            f"step {number}, {step.title}, ended with status {status}; its message is above. {then} the same command again to go on from here"
        )
    return time.monotonic() - began
