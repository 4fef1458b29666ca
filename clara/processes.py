"""Processes that work for another one, and end when it has."""

import os
import threading
import time
from pathlib import Path

_POLL_SECONDS = 0.5


def end_with_parent(parent: int) -> None:
    """From now on, end this process when its parent is gone: a killed job must leave nobody behind who still writes.

    Args:
        parent: process id of who started this one, as `os.getppid()` told it early, or as it said itself.
    """
    threading.Thread(target=_watch, args=(parent,), name="end_with_parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def exists(process: int) -> bool:
    """Whether a process of this machine with that id is there and has not ended; one that nobody has asked for its exit status has."""
    try:
        # Behind the name, which may hold anything but is in brackets.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
