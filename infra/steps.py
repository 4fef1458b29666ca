"""Steps of an experiment: the commands that a user types, assembled, printed and run one after another."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from clara.config.flags import touches
from clara.config.tree import JOINT, PRETRAIN
from clara.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = "infra/start/checkpoint"
# Defaults; the caller's environment overrides them. Threads that spin while they wait are 20 times slower on shared
# cores.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
BAD_INPUT = 2  # exit status of a command that refuses its input
STAGES = ("model", "prompts", "pretrain", "instruct", "joint", "launch")
"""Sections that the training commands of an experiment read, and none of its other steps: `--set` takes these keys."""
PASSED_ON = {*STAGES, "retrieval", "backbone.dtype"}


@dataclass(frozen=True)
class Step:
    """One command of an experiment.

    Attributes:
        title: its name.
        command: as a list of words.
        notes: what is printed after an exit status other than 0 that counts as success too.
    """

    title: str
    command: list[str]
    notes: Mapping[int, str] = field(default_factory=dict)


def options(**values: object) -> list[str]:
    """Command-line options: `num_shards=8` is `--num-shards 8`, True is the bare option, a sequence repeats its option.

    None, False and "" leave an option out.
    """
    parts: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            parts.append(option)
        elif isinstance(value, (list, tuple)):
            parts += [part for one in value for part in (option, str(one))]
        elif not (value is None or value is False or value == ""):
            parts += [option, str(value)]
    return parts


def module(name: str, /, *arguments: str, **values: object) -> list[str]:
    """The command `python -m NAME`, with options and then other arguments."""
    return [sys.executable, "-m", name, *options(**values), *arguments]


MEAN_QUESTIONS = 32  # sixteen give as much as all


def centred_slot_mean(**values: object) -> list[str]:
    """The command whose CHECKPOINT ranks by the mean over the slots, less the means of corpus and questions."""
    return module("training.set_score", "--pooling", "slot_mean", "--centred", **values)


def training(program: str, config: str, /, *overrides: str, **values: object) -> list[str]:
    """The command `python training/PROGRAM.py`, with options, a configuration file and overrides of its keys."""
    path = relative(ROOT / "training" / f"{program}.py")
    return [sys.executable, path, *options(**values, config=config, set=overrides)]


def for_stage(stage: str, overrides: Sequence[str]) -> list[str]:
    """Those of overrides shared by all stages that one stage reads; it would refuse the others.

    Paths, which an experiment sets itself, are none of them.
    """
    other = {"pretrain": "instruct", "instruct": "pretrain"}.get(stage)
    read = set(JOINT if stage == "joint" else PRETRAIN) - {other}
    named = [(override.partition("=")[0], override) for override in overrides]
    return [override for key, override in named if touches(key, read) and touches(key, PASSED_ON)]


def relative(path: Path) -> str:
    """A path as a user in the project's root would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def shown(command: Sequence[str]) -> str:
    """A command as a user would type it."""
    return shlex.join(["python" if part == sys.executable else part for part in command])


def listed(steps: Iterable[Step]) -> str:
    """The commands of steps as a user would type them, one a line."""
    return "\n".join(shown(step.command) for step in steps)


def run_steps(steps: Sequence[Step]) -> None:
    """Run steps one after another.

    Raises:
        InputError: see `run_step`.
    """
    for number, step in enumerate(steps, 1):
        run_step(step, number, len(steps))


def run_step(step: Step, number: int, total: int) -> float:
    """Run a step in the foreground. Returns its seconds.

    Raises:
        InputError: it failed; its own message is above.
    """
    title = f"[{number}/{total}] {step.title}"
    print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}")
    return run_together([step.command], f"step {number}, {step.title},", step.notes)


def run_together(
    commands: Sequence[Sequence[str]], name: str, notes: Mapping[int, str] = MappingProxyType({})
) -> float:
    """Run commands at the same time and wait for all. Returns the seconds.

    Args:
        commands: to run.
        name: for the error.
        notes: what is printed after an exit status other than 0 that counts as success too.

    Raises:
        InputError: one of them failed; its own message is above.
    """
    for command in commands:
        print(f"  $ {shown(command)}", flush=True)
    began, environment = time.monotonic(), ENVIRONMENT | os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    statuses = [process.wait() for process in processes]
    for status in statuses:
        if status in notes:
            print(notes[status])
    failed = [status for status in statuses if status and status not in notes]
    if failed:
        then = "Correct what it names, then run" if BAD_INPUT in failed else "Run"
        raise InputError(
            f"{name} ended with status {', '.join(map(str, failed))}; its message is above. {then} the same command "
            "again to continue from here"
        )
    return time.monotonic() - began
