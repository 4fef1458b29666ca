"""What a user reads of a run that failed under Ray: the reason and what to do, in place of Ray's own report."""

import os
import re
from collections.abc import Iterator

from ray.exceptions import OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from clara.config.tree import Config
from clara.errors import InputError
from training.run.recipe import run_paths

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_USED = re.compile(r"[0-9.]+GB used / [0-9.]+GB limit")


def input_error(error: BaseException) -> InputError | None:
    """The `InputError` of a rank, if that is what a training run failed of."""
    return next((cause for cause in _causes(error) if isinstance(cause, InputError)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What a training run failed of, of all ranks and of Ray's controller, each with its causes."""
    failures = [error, getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            yield cause
            # Ray wraps what a rank raised, and keeps it under this name alone.
            cause = getattr(cause, "_base_exc", None) or cause.__cause__


def not_started(error: BaseException, config: Config) -> InputError | None:
    """The error for a user if the ranks never started to train."""
    failure = getattr(error, "controller_failure", None)
    if not isinstance(failure, WorkerGroupStartupTimeoutError | WorkerGroupStartupFailedError):
        return None
    launch = config.launch
    why = f"did not start ({str(failure).strip().splitlines()[-1]})"
    if isinstance(failure, WorkerGroupStartupTimeoutError):
        each = (
            f"{launch.cpus_per_worker:g} cores each (launch.cpus_per_worker)"
            if launch.cpus_per_worker
            else "their share of its cores"
        )
        gpus = " and a GPU each" if launch.gpu else ""
        why = f"found no room on the cluster: {each}{gpus}, within {os.environ[START_TIMEOUT]} s ({START_TIMEOUT})"
    return InputError(
        f"launch: {launch.num_workers} ranks {why}, {launch.max_failures + 1} times in this run (launch.max_failures "
        "+ 1); end what else holds the "
        "cluster, or add a node, and run the same command again: it resumes from the last state in "
        f"{run_paths(config).run}"
    )


def out_of_memory(error: BaseException, config: Config) -> InputError | None:
    """The error for a user if Ray ended ranks because a node had no memory left."""
    # A process that died of it may be reported as dead, with the reason in the text.
    short = (c for c in _causes(error) if isinstance(c, OutOfMemoryError) or "running low on memory" in str(c))
    if (cause := next(short, None)) is None:
        return None
    used = _USED.search(str(cause))
    return InputError(
        f"launch: a node ran out of memory ({used.group() if used else str(cause).strip().splitlines()[0]}), and Ray "
        "ended what ran there; end other programs on it, or train with fewer ranks (launch.num_workers) or a smaller "
        "joint.micro_batch, and run the same command again: it resumes from the last state in "
        f"{run_paths(config).run}"
    )
