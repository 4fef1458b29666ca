"""Joint training as ranks under Ray Train, with DeepSpeed's ZeRO; refreshes in a Ray actor beside them.

Who waits for what, and how long at most:

| who | for | at most | then |
|---|---|---|---|
| driver | a cluster at RAY_ADDRESS | 10 s (`launch.cluster`), then what Ray takes to join | `InputError` |
| driver | cores or GPUs of ranks | RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, 600 s, max_failures + 1 times | error |
| driver | ranks that start | until Ray finds a process or node dead; one that hangs is not ended | a failure |
| driver | ranks that train | as long as each answers every RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S, 600 s | a failure |
| rank | another rank, at a collective | `collective_seconds` | a failure |
| rank | search servers | retrieval.search_seconds, each question (`training.launch.search_servers`) | a failure |
| rank 0 | a refresh that it waits for | joint.refresh.wait_seconds (`refresh.announcement`) | it is left out |
| nobody | a refresh beside training | joint.refresh.max_seconds (`refresh.attempts`) | next attempt, of max_attempts |
| driver | the last re-encoding | joint.refresh.max_seconds, max_attempts times | error after the report |
| rank 0 | a run state being written, before the next and at the end | 900 s (`loop.run_state`) | a failure |
| rank 0 | the ranks of a killed run, which hold its directory | 60 s (`run.recipe.sole_user`) | a failure |

A failure of one rank is seen within seconds and ends all of them, in 35 s at most where they hang; launch.max_failures
times they start again.
"""

import gc
import logging
import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train as ray_train
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from clara.config.tree import Config
from clara.errors import InputError
from clara.index.search import MemoryIndex
from clara.storage.folders import atomic_write
from training.launch.cluster import check_reachable
from training.launch.cluster_shares import check_room, scaling
from training.launch.failures import START_TIMEOUT, input_error, not_started, out_of_memory
from training.launch.served_index import served
from training.loop.engine import Engine
from training.loop.follow import following
from training.loop.loop import NotFiniteError
from training.loop.run_state import WRITE_SECONDS
from training.loop.zero_engine import engine_for
from training.refresh.ray_actors import RayWorker
from training.run.last_encoding import encode, finished_run
from training.run.last_fit import fit_last, last_fit_due
from training.run.recipe import RunPaths
from training.run.run import train_rank
from training.stages.joint_stage import JointStage

logger = logging.getLogger(__name__)
_OBJECT_STORE_BYTES = 256 * 2**20
_START_TIMEOUT_SECONDS = 600
_LEAST_COLLECTIVE_SECONDS = 1800
_COLLECTIVE_MARGIN_SECONDS = 600


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), else start one for this run on this machine.

    What ranks say is read from rank 0's log file instead of through Ray, which mixes it with its own processes'
    messages.

    Raises:
        InputError: no cluster answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Importing torch in every rank at once can take longer than Ray's minute on a small machine.
    os.environ.setdefault(START_TIMEOUT, str(_START_TIMEOUT_SECONDS))
    if address := os.environ.get("RAY_ADDRESS"):
        check_reachable(address)
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"RAY_ADDRESS is {address!r}: the cluster cannot be joined ({error}); correct it, or unset it to "
                "train here"
            ) from error
        return
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )


def collective_seconds(config: Config) -> int:
    """Timeout of a rank at a collective: longer than another may wait alone.

    A rank that gives up says why; one that merely waited for it must not end before.
    """
    searching = config.retrieval.search_seconds if config.retrieval.search_shards else 0.0
    alone = config.joint.refresh.wait_seconds + searching + WRITE_SECONDS
    return max(_LEAST_COLLECTIVE_SECONDS, math.ceil(alone) + _COLLECTIVE_MARGIN_SECONDS)


def failures(most: int) -> FailureConfig:
    """How often failed ranks restart, and how often Ray Train waits for room for them; its default is without end."""
    return FailureConfig(max_failures=most, controller_failure_limit=most)


def log_file(where: RunPaths, rank: int) -> Path:
    """The log of a rank."""
    return where.run / f"log-rank{rank}.txt"


def stopped_note(where: RunPaths) -> Path:
    """The file that says why the ranks stopped before the last step."""
    return where.run / "stopped.txt"


def log_to(path: Path) -> None:
    """Send this process's messages to a file, appending; those of libraries from warnings on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=path, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    for package in ("clara", "training"):
        logging.getLogger(package).setLevel(logging.INFO)


def show(lines: Sequence[str]) -> None:
    """Pass on what rank 0 said."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def rank_loop(settings: dict[str, Any]) -> None:
    """What every rank runs."""
    config, where = Config.model_validate(settings["config"]), settings["where"]
    rank = ray_train.get_context().get_world_rank()
    log_to(log_file(where, rank))
    try:
        _train_rank(config, where, rank)
    except NotFiniteError as error:
        # All ranks stop here, and would again: raised, it would restart them.
        logger.error("rank %d stops: %s", rank, error)
        if rank == 0:
            atomic_write(stopped_note(where), str(error))
    except Exception as error:
        # Else nobody would read why Ray Train starts the ranks again.
        logger.error("rank %d stops: %s", rank, error)
        raise


def keep_heap() -> None:
    """Leave all that lives by now out of garbage collections: libraries, the model.

    As long as an actor finds no room, Ray asks every process of the cluster for a full collection every ten seconds.
    Over the 600,000 objects of the libraries one takes 0.35 s of a processor, and nothing else in the process runs
    meanwhile; where processors are scarce it takes longer than the ten seconds, and a rank that waits for a lost search
    server hardly comes to look at the clock.
    """
    gc.collect()
    gc.freeze()


def _train_rank(config: Config, where: RunPaths, rank: int) -> None:
    context = ray_train.get_context()
    logger.info("rank %d of %d: process %d on %s", rank, context.get_world_size(), os.getpid(), platform.node())
    device = "cuda" if config.launch.gpu else "cpu"

    def engine(stage: JointStage) -> Engine:
        made = engine_for(config, stage, num_ranks=context.get_world_size(), device=device)
        keep_heap()
        return made

    refresh = config.joint.refresh
    worker = RayWorker(refresh.num_cpus, refresh.num_gpus, refresh.num_workers) if rank == 0 else None
    place = f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device
    retrieval = config.retrieval
    open_index = served(retrieval, owner=rank == 0) if retrieval.search_shards else MemoryIndex.open
    ranks_here = context.get_local_world_size()
    train_rank(config, where, engine, num_ranks=ranks_here, worker=worker, device=place, open_index=open_index)


def train(config: Config, where: RunPaths, trained: bool) -> str:
    """Train on the ranks of a cluster, unless that is done, then make the last re-encoding where refreshes run.

    A fit of the score to what it encoded has a core, and a GPU if the ranks have one.

    Returns why the last re-encoding failed.

    Raises:
        InputError: of a rank, what it trains is not finite, or the cluster lacks what is asked for, has no room for it,
            or is gone.
    """
    refresh = config.joint.refresh
    connect()
    try:
        if not trained:
            _fit(config, where)
        try:
            check_room(config, ray.cluster_resources())
        except InputError as error:
            return str(error)
        worker = RayWorker(refresh.num_cpus, refresh.num_gpus, refresh.num_workers)
        failure = encode(config, where, worker, threads=refresh.threads)
        if last_fit_due(config, where, finished_run(config, where)):
            gpu = config.launch.gpu
            ray.get(ray.remote(num_gpus=int(gpu))(fit_last).remote(config, where, "cuda" if gpu else "cpu"))
        return failure
    finally:
        ray.shutdown()


def _fit(config: Config, where: RunPaths) -> None:
    """Ranks that die are started again, from the last run state."""
    stopped_note(where).unlink(missing_ok=True)
    try:
        trainer = TorchTrainer(
            rank_loop,
            train_loop_config={"config": config.model_dump(), "where": where},
            scaling_config=scaling(config, ray.cluster_resources()),
            torch_config=TorchConfig(
                backend="nccl" if config.launch.gpu else "gloo",
                timeout_s=collective_seconds(config),
            ),
            run_config=RunConfig(
                name=where.run.name,
                storage_path=config.launch.storage or str(where.run / "ray"),
                failure_config=failures(config.launch.max_failures),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        keep_heap()
        with following(log_file(where, 0), show):
            trainer.fit()
        if (note := stopped_note(where)).is_file():
            raise InputError(note.read_text(encoding="utf-8"))
    except ray_train.TrainingFailedError as error:
        if (cause := input_error(error) or not_started(error, config) or out_of_memory(error, config)) is not None:
            raise cause from error
        raise
    except RayError as error:
        if (cause := out_of_memory(error, config)) is not None:
            raise cause from error
        # Not a rank that failed, which Ray Train starts again, but what would have started it.
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"Ray's processes ended while training ({reason}); start the cluster again where it is one of your own (no "
            "`ray stop` beside a run on "
            f"this machine), and run the same command again: it resumes from the last state in {where.run}"
        ) from error
