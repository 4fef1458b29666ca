"""Joint training in one plain torch process: for debugging, and on a single borrowed GPU."""

import torch

from clara.config.tree import Config
from clara.errors import InputError
from training.loop.engine import LocalEngine
from training.refresh.process import ProcessWorker
from training.run.last_encoding import encode
from training.run.last_fit import fit_last
from training.run.recipe import RunPaths, threads_of_rank
from training.run.run import train_rank
from training.stages.joint_stage import JointStage


def device(config: Config) -> str:
    """Where the model computes.

    Raises:
        InputError: launch.gpu is true, and there is no GPU.
    """
    if not config.launch.gpu:
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError(
            "launch.gpu is true, and there is no CUDA device here; run where there is one, or set launch.gpu=false"
        )
    return "cuda"


def engine(stage: JointStage) -> LocalEngine:
    """One process that is all ranks."""
    return LocalEngine(stage.module, stage.groups(), stage.optimiser)


def train(config: Config, where: RunPaths, trained: bool) -> str:
    """Train in this process, unless that is done, then make the last re-encoding and the last fit.

    Returns why the last re-encoding failed, or "".
    """
    place, worker = device(config), ProcessWorker()
    try:
        if not trained:
            train_rank(config, where, engine, num_ranks=1, worker=worker, device=place)
        failure = encode(config, where, worker, threads=threads_of_rank(config, 1))
        fit_last(config, where, place)
        return failure
    finally:
        worker.close()
