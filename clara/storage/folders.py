"""Folders of this machine and of buckets behind URLs, with one small interface for both."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.storage.base import Folder, Stored
from clara.storage.paths import Name, is_url


def exists(path: Name) -> bool:
    """Whether there is a file at a path or URL."""
    directory, name = os.path.split(os.fspath(path))
    return bool(folder(directory or ".").sizes([name]))


def folder(path: Name) -> Folder:
    """The folder behind a path or URL; nothing is made or looked at yet."""
    if not is_url(path):
        return Local(Path(path))
    from clara.storage.bucket import Bucket  # which few runs need

    return Bucket(os.fspath(path))


def unwritable(path: Name, error: OSError) -> InputError:
    """The error for a path that can't be written."""
    return InputError(
        f"{path}: cannot be written ({error.strerror or error}); choose a directory that you may write to, with room"
    )


def _write_file(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary name beside it, flushed to disk, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):  # of a full disk it would take room that others need
            partial.unlink()
        raise unwritable(path, error) from error


def atomic_write(path: Name, data: bytes | str) -> None:
    """Write a whole file or nothing, here or at a URL."""
    raw = data.encode() if isinstance(data, str) else data
    if is_url(path):
        directory, _, name = os.fspath(path).rpartition("/")
        folder(directory).write(name, raw)
    else:
        _write_file(Path(path), raw)


def sha256_file(path: Name) -> str:
    """Sha256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def link_or_copy(origin: Path, target: Path, sha256: str) -> None:
    """Make a file appear at `target` too, whole: a hard link, or a checked copy where the file system has none.

    Raises:
        InputError: the copy can't be written, or has another sha256.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        os.link(origin, partial)
    except OSError:  # another file system, or one without hard links
        try:
            shutil.copyfile(origin, partial)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(
                f"{target}: cannot be written ({error.strerror or error}); choose a directory with room"
            ) from error
        if sha256_file(partial) != sha256:
            partial.unlink()
            raise InputError(
                f"{origin}: its sha256 is not the manifest's; the file is damaged, copy the artefact again"
            ) from None
    os.replace(partial, target)


class Local:
    """A directory of this machine. See `Folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        """See `Folder`."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        _write_file(self.path / name, data)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """See `Folder`."""
        return {name: (self.path / name).stat().st_size for name in names if (self.path / name).is_file()}

    def remove(self, names: Iterable[str]) -> None:
        """See `Folder`. Folders that become empty go too."""
        for name in names:
            path = self.path / name
            path.unlink(missing_ok=True)
            if path.parent != self.path and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def files(self, below: str = "") -> dict[str, Stored]:
        """See `Folder`."""
        found = (path for path in (self.path / below).rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): Stored(path.stat().st_size) for path in found}

    def tags(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """See `Folder`."""
        return {}

    def unchanged(self, entries: Iterable[Mapping[str, Any]], tags: Mapping[str, str]) -> bool:
        """See `Folder`."""
        try:
            return all(sha256_file(self.path / entry["path"]) == entry["sha256"] for entry in entries)
        except OSError:
            return False

    def touch(self, name: str) -> None:
        """See `Folder`."""
        os.utime(self.path / name)
