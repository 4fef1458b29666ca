"""Processes that begin with everything imported, in milliseconds instead of ten seconds.

Each is forked from one process, which Python's `forkserver` keeps beside the tests: it has imported the libraries and
done nothing else. It is a separate process in every other respect: it can be killed, and shares no memory.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest

_PRELOADED = ["tests.helpers.warm_imports"]


def start(
    target: Callable[..., object], *arguments: object, said: Path | None = None, **environment: str
) -> ForkServerProcess:
    """Begin a process in this one's working directory and environment.

    Args:
        target: a function of a module; what it returns is the exit status (None: 0).
        arguments: its arguments, which can be pickled.
        said: file that gets standard output and standard error; without it they are dropped.
        environment: variables of the process, beside those of this one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # a pool of threads would not live through a fork
        ensure_running()
    given = (target, arguments, os.environ | environment, os.getcwd(), said or Path(os.devnull))
    process = context.Process(target=_run, args=given)
    process.start()
    return process


def kill(process: ForkServerProcess) -> None:
    """End it by SIGKILL."""
    process.kill()
    process.join()


def _run(
    target: Callable[..., object],
    arguments: tuple[object, ...],
    environment: dict[str, str],
    folder: str,
    said: Path,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with open(said, "ab") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    sys.exit(target(*arguments))  # type: ignore[arg-type]
