"""A pool of processes on this machine, for jobs that run without Beam."""

import functools
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from clara.errors import InputError
from clara.processes import end_with_parent

_LOG = logging.getLogger(__name__)
_MAX_RUNS = 3
_worker: Any = None  # of this process, if it is one of a pool

Setting = TypeVar("Setting")
Worker = TypeVar("Worker")
Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _start(parent: int, make: Callable[[Any], Any], setting: Any) -> None:
    global _worker
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    logging.disable(logging.WARNING)
    _worker = make(setting)


def _call(task: Callable[[Any, Item], Result], item: Item) -> Result:
    try:
        return task(_worker, item)
    except (InputError, OSError):
        raise
    except Exception as error:  # the parent may be unable to unpickle its class
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


class WorkerPool(Generic[Worker]):
    """Runs tasks on workers, one object per process, which keep a loaded model and tokenizer.

    With one worker, tasks run in this process.
    """

    def __init__(self, num_workers: int, make: Callable[[Setting], Worker], setting: Setting) -> None:
        """Processes start with the first tasks.

        Args:
            num_workers: number of processes.
            make: returns a worker; importable by name.
            setting: argument of `make`, picklable.
        """
        self._here = make(setting) if num_workers == 1 else None
        self._others = set(multiprocessing.active_children())
        self._executor = ProcessPoolExecutor(
            num_workers, multiprocessing.get_context("spawn"), _start, (os.getpid(), make, setting)
        )

    def map(self, task: Callable[[Worker, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of a task for each item, in the order of the items.

        Raises:
            BrokenProcessPool: a process was killed.
        """
        if self._here is not None:
            return (task(self._here, item) for item in items)
        return self._executor.map(functools.partial(_call, task), items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        """End the processes; kill them after an error."""
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()
        self._executor.shutdown(cancel_futures=True)


def retry_on_worker_death(run: Callable[[], Result], output: str) -> Result:
    """Run a job that can resume; if one of its processes is killed, run it again, at most three times in total.

    Raises:
        InputError: processes were killed in each run.
    """
    for left in reversed(range(_MAX_RUNS)):
        try:
            return run()
        except BrokenProcessPool as error:
            if not left:
                raise InputError(
                    f"--output {output}: in each of {_MAX_RUNS} runs a worker process was killed; most often the "
                    "machine has too little memory for so many: run the command again, which resumes, with a smaller "
                    "--num-workers or --batch-tokens"
                ) from error
            _LOG.warning("a worker process was killed; the job resumes with new ones")
    raise AssertionError("the last run returns or raises")
