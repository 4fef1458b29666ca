"""One command for a borrowed GPU: is it right, how fast is it, does the small world train on it.

python -m benchmarks.gpu [--device cuda] [--output DIR] [--parts parity,1b,7b,world,faiss]

parity  float32 on the device against the CPU: losses of 20 joint steps, memory, scores, greedy tokens
1b, 7b  a joint step and compression at these shapes with random weights: tokens a second, share of the peak, memory,
        by attention kernel, and with torch.compile
world   the small world, trained from nothing to its figure (infra/configs/world.toml)
faiss   clustering, adding and flat search on the device, where this FAISS has code for it

Each part is a process with a time limit, under eight minutes in all, and writes DIR/PART.json; a part with several
cases writes it after each. The same command continues from what is complete. `--tiny` has shapes for a CPU.
`benchmarks.gpu_pack` makes the archive for a machine that has torch and transformers alone.
"""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.config.flags import plain_parser
from clara.errors import InputError, command_line
from clara.storage.folders import atomic_write

Save = Callable[[Mapping[str, Any]], None]
"""Keeps what a part has found so far."""


@dataclass(frozen=True)
class Part:
    """The module whose `measure(name, device, tiny, save)` does it, and its longest time in seconds."""

    module: str
    limit_seconds: float


PARTS = {
    "parity": Part("benchmarks.gpu_parity", 60.0),
    "1b": Part("benchmarks.gpu_shapes", 70.0),
    "7b": Part("benchmarks.gpu_shapes", 130.0),
    "world": Part("benchmarks.gpu_world", 170.0),
    "faiss": Part("benchmarks.gpu_faiss", 45.0),
}
_TINY_LIMIT_SECONDS = 1800.0  # a CPU may have other work


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = plain_parser("benchmarks.gpu", __doc__)
    found.add_argument("--device", default="cuda", help="cuda (default), or cpu")
    found.add_argument("--output", default="gpu", metavar="DIR", help="for the results (default: gpu)")
    found.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: all)")
    found.add_argument("--tiny", action="store_true", help="shapes that a CPU computes in seconds, two steps a stage")
    found.add_argument("--one", metavar="PART", choices=[*PARTS], help="do this part in this process")
    found.add_argument("--dry-run", action="store_true", help="print the parts and what is complete, and stop")
    return found


def complete(file: Path, options: argparse.Namespace) -> bool:
    """Whether a part's file holds all its results for this device and size."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found.get("complete")) and (found["device"], found["tiny"]) == (options.device, options.tiny)


def run_part(name: str, options: argparse.Namespace) -> None:
    """Do one part here, and write its file."""
    from benchmarks.environment import environment  # imports torch

    file = Path(options.output) / f"{name}.json"
    about = {"part": name, "device": options.device, "tiny": options.tiny, **environment("benchmarks.gpu")}

    def save(found: Mapping[str, Any], *, whole: bool = False) -> None:
        atomic_write(file, json.dumps({**about, "complete": whole, "found": found}, indent=1) + "\n")

    # A module of this package: parts import torch, and a dry run must not.
    measure = importlib.import_module(PARTS[name].module).measure
    save(measure(name, options.device, options.tiny, save), whole=True)


def run_apart(name: str, options: argparse.Namespace) -> str:
    """Do one part in a process with a time limit. Returns what went wrong, or nothing."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, "--device", options.device]
    command += ["--output", options.output, *(["--tiny"] if options.tiny else [])]
    limit = _TINY_LIMIT_SECONDS if options.tiny else PARTS[name].limit_seconds
    log = Path(options.output) / f"{name}.log"
    with open(log, "w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(command, stdout=stream, stderr=stream, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return f"not done after {limit:.0f} s, see {log}"
    return f"exit status {done.returncode}, see {log}" if done.returncode else ""


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    names = [name.strip() for name in options.parts.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        raise InputError(f"--parts {unknown[0]!r}: no such part; there are {', '.join(PARTS)}")
    output = Path(options.output)
    if options.one:
        run_part(options.one, options)
        return 0
    states = {name: "complete" if complete(output / f"{name}.json", options) else "to do" for name in names}
    if options.dry_run:
        print(json.dumps({"device": options.device, "tiny": options.tiny, "parts": states}, indent=1))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    failed = {}
    for name, state in states.items():
        failure = "" if state == "complete" else run_apart(name, options)
        print(f"{name}: {failure or state.replace('to do', 'done')}", flush=True)
        if failure:
            failed[name] = failure
    return 1 if failed else 0


if __name__ == "__main__":
    command_line(main)
