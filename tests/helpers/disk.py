"""A disk without room, as a program meets it."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PAGE = 4096


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file of this process can grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class SmallDisk:
    """A separate disk with little room."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ballast = root / "ballast"

    def fill(self) -> None:
        """Until not one page is free."""
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while True:
                os.write(descriptor, bytes(_PAGE))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(descriptor)

    @property
    def free_bytes(self) -> int:
        """Room that is left."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def free(self) -> None:
        """Take out what filled it."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(root: Path, size: str) -> Iterator[SmallDisk]:
    """A tmpfs mounted there. Skips where that is not allowed."""
    root.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a separate disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
