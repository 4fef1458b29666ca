"""Ranks of joint runs as plain processes: DeepSpeed over gloo, without the start-up time of Ray."""

import json
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.helpers import warm
from tests.helpers.ports import free_ports

# One start serves several runs, one after the other.
PROGRAM = """
import json, logging, sys
import torch.distributed as dist
from clara.config.load import load
from training.loop.zero_engine import engine_for
from training.run.report import finish
from training.run.recipe import absolute, run_paths
from training.run.run import train_rank
from training.refresh.process import ProcessWorker

logging.basicConfig(level=logging.INFO)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
worker = ProcessWorker() if rank == 0 else None
for sets in json.loads(sys.argv[1]):
    config = absolute(load(None, sets))
    where = run_paths(config)
    train_rank(
        config, where, lambda stage: engine_for(config, stage, num_ranks=world, device="cpu"), num_ranks=world,
        worker=worker, device="cpu",
    )
    if rank == 0:
        finish(config, where)
    dist.barrier()
dist.destroy_process_group()
"""


def start(count: int, arguments: Sequence[str], program: str, folder: Path) -> list[tuple[ForkServerProcess, Path]]:
    """Begin a program on each rank. Returns the processes, each with the file in `folder` that gets what it says."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    started = []
    for rank in range(count):
        own = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        said = folder / f"rank{rank}-of-{count}.txt"
        said.unlink(missing_ok=True)
        started.append((warm.start(_execute, program, list(arguments), said=said, **own), said))
    return started


def _execute(program: str, arguments: list[str]) -> None:
    sys.argv = ["rank", *arguments]
    exec(compile(program, "rank", "exec"), {"__name__": "__main__"})


def finished(started: Sequence[tuple[ForkServerProcess, Path]], timeout_seconds: float) -> list[str]:
    """What each rank said; all must end well within the time, and none is left behind."""
    deadline = time.monotonic() + timeout_seconds
    for process, _ in started:
        process.join(max(0.0, deadline - time.monotonic()))
    in_time = [process.exitcode for process, _ in started]
    for process, _ in started:
        warm.kill(process)
    texts = [said.read_text(encoding="utf-8") for _, said in started]
    for status, text in zip(in_time, texts, strict=True):
        assert status == 0, f"exit status {status} ({timeout_seconds:g} s are over if None): {text}"
    return texts


def train(count: int, runs: Sequence[list[str]], folder: Path, timeout_seconds: float = 900) -> list[str]:
    """Train joint runs, each given as `key=value` overrides, one after the other on as many ranks."""
    return finished(start(count, [json.dumps(list(runs))], PROGRAM, folder), timeout_seconds)
