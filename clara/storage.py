"""Where files lie: a folder of this machine, or one of a bucket behind a URL that fsspec knows. One small interface for both."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from clara.errors import InputError

Name = str | os.PathLike[str]


class StorageError(InputError):
    """A store that did not answer, or refused."""


def is_url(path: Name) -> bool:
    """Whether a path is a URL of a store, and no path of this machine."""
    return "://" in os.fspath(path)


def absolute(path: Name) -> str:
    """A path that means the same in any directory; a URL stays what it is, without slashes at its end."""
    return os.fspath(path).rstrip("/") if is_url(path) else str(Path(path).resolve())


def from_root(path: Name) -> str:
    """A path from the root, its links as they are, which other machines may have otherwise; a URL as it is."""
    return os.fspath(path) if is_url(path) else str(Path(path).absolute())


def uri(path: Name) -> str:
    """A path as a `file://` URI; a URL as it is."""
    return os.fspath(path) if is_url(path) else Path(path).resolve().as_uri()


def require_local(name: str, path: Name) -> None:
    """Refuse a URL for what is appended to, renamed and locked while a command runs.

    Raises:
        InputError: it is one; `name` is the option's.
    """
    if is_url(path):
        raise InputError(f"{name} is {os.fspath(path)!r}: a URL, and this command works in a directory of this machine; give one")


def join(directory: Name, *names: str) -> str:
    """A place below a directory, which may be a URL."""
    return "/".join((os.fspath(directory).rstrip("/"), *names)) if is_url(directory) else str(Path(directory, *names))


def exists(path: Name) -> bool:
    """Whether there is a file at a path or URL."""
    directory, name = os.path.split(os.fspath(path))
    return bool(folder(directory or ".").sizes([name]))


@dataclass(frozen=True)
class Stored:
    """What a folder says of a file: its size, and what changes with its content (empty on this machine)."""

    bytes: int
    tag: str = ""


class Folder(Protocol):
    """Files by their names relative to a folder."""

    def read(self, name: str) -> bytes | None:
        """A whole file; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, or nothing."""
        ...

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of those among some files that are there."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over."""
        ...

    def files(self, below: str = "") -> dict[str, Stored]:
        """All files in it, or in one of its folders."""
        ...

    def tags(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """What tells later whether files that were just written have been touched since; on this machine nothing is needed."""
        ...

    def unchanged(self, entries: Iterable[Mapping[str, Any]], tags: Mapping[str, str]) -> bool:
        """Whether files of a manifest's entries are as they were written: by sha256 on this machine, by size and tag on a bucket."""
        ...

    def touch(self, name: str) -> None:
        """Have a file count as written now, where that costs nothing."""
        ...


def folder(path: Name) -> Folder:
    """The folder behind a path or URL; nothing is made or looked at yet."""
    if not is_url(path):
        return Local(Path(path))
    from clara.bucket import Bucket  # which few runs need

    return Bucket(os.fspath(path))


# --- this machine ----------------------------------------------------------------------------------------------------


def unwritable(path: Name, error: OSError) -> InputError:
    """What to tell of a place that can't be written."""
    return InputError(f"{path}: cannot be written ({error.strerror or error}); choose a directory that you may write to, with room")


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
