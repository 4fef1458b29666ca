"""Paths and URLs of artefacts."""

import os
from pathlib import Path

from clara.errors import InputError

Name = str | os.PathLike[str]


def is_url(path: Name) -> bool:
    """Whether a path is a URL of a store, and no path of this machine."""
    return "://" in os.fspath(path)


def is_registered(path: Name) -> bool:
    """Whether a path is the name of a registered model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""
    return os.fspath(path).startswith("models:")


def absolute(path: Name) -> str:
    """A path that means the same in any directory; a URL stays what it is, without slashes at its end."""
    return os.fspath(path).rstrip("/") if is_url(path) else str(Path(path).resolve())


def from_root(path: Name) -> str:
    """A path from the root, its links as they are, which other machines may have otherwise; a URL as it is."""
    return os.fspath(path) if is_url(path) else str(Path(path).absolute())


def uri(path: Name) -> str:
    """A path as a `file://` URI; a URL as it is."""
    return os.fspath(path) if is_url(path) else Path(path).resolve().as_uri()


def require_resolved(checkpoint: Name) -> None:
    """Refuse the name of a registered model where it has to be a path or URL by now.

    Raises:
        InputError: `checkpoint` is the name of a registered model.
    """
    if is_registered(checkpoint):
        raise InputError(
            f"checkpoint {str(checkpoint)!r}: registered models are resolved by the command clara; give the folder "
            "or URL of the CHECKPOINT"
        )


def require_local(name: str, path: Name) -> None:
    """Refuse a URL for what is appended to, renamed and locked while a command runs.

    Raises:
        InputError: `path` is a URL; the message names the option `name`.
    """
    if is_url(path):
        raise InputError(
            f"{name} is {os.fspath(path)!r}: a URL, and this command works in a directory of this machine; give one"
        )


def join(directory: Name, *names: str) -> str:
    """A place below a directory, which may be a URL."""
    return "/".join((os.fspath(directory).rstrip("/"), *names)) if is_url(directory) else str(Path(directory, *names))
