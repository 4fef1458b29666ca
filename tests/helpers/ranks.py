"""Ranks of joint runs as plain processes: DeepSpeed over gloo, without the start-up time of Ray."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
# One start serves several runs, one after the other: importing everything takes longer than a short run.
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


def start(count: int, arguments: Sequence[str], program: str) -> list["subprocess.Popen[str]"]:
    """Begin a program on each rank."""
    (port,) = free_ports(1)
    started = []
    for rank in range(count):
        own = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        environment = os.environ | own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, *arguments]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return started


def finished(processes: list["subprocess.Popen[str]"], timeout_seconds: float) -> list[str]:
    """What each rank said; all must end well within the time, and none is left behind."""
    try:
        said = [process.communicate(timeout=timeout_seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, words in zip(processes, said, strict=True):
        assert process.returncode == 0, words
    return said


def train(count: int, runs: Sequence[list[str]], timeout_seconds: float = 900) -> list[str]:
    """Train joint runs, each given as `key=value` overrides, one after the other on as many ranks."""
    return finished(start(count, [json.dumps(list(runs))], PROGRAM), timeout_seconds)
