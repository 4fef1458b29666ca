"""Processes that work for another one, and end when it has."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.5


def end_with_parent(parent: int) -> None:
    """From now on, end this process when its parent is gone: a killed job must not leave a process that still writes.

    Args:
        parent: process id of who started this one, as returned by `os.getppid()` early on, or as the parent passed it.
    """
    threading.Thread(target=_watch, args=(parent,), name="end_with_parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def exists(process: int) -> bool:
    """Whether a process of this machine with that id is running; a zombie is not."""
    try:
        # Behind the name, which may hold anything but is in brackets.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


class _Threads:
    """How many are inside `torch_threads` now, and what held before the first of them."""

    lock = threading.Lock()
    inside = 0
    before = 0


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with this many threads inside, which its last bits depend on; 0 leaves it alone.

    The setting is the process's: of several Python threads that are inside together, the last to leave restores it.
    """
    if not count:
        yield
        return
    import torch  # takes seconds, which processes that do not compute need not wait for

    with _Threads.lock:
        if not _Threads.inside:
            _Threads.before = torch.get_num_threads()
        _Threads.inside += 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _Threads.lock:
            _Threads.inside -= 1
            if not _Threads.inside:
                torch.set_num_threads(_Threads.before)
