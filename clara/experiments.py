"""What everything that logs runs to a tracking server must agree on: where experiments keep their files, how a local database comes to be."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other."""
    parsed = urlparse(uri)
    return Path(parsed.path[1:]).absolute() if parsed.scheme == "sqlite" else None


def artefact_location(uri: str) -> str | None:
    """Where a new experiment keeps files: beside an SQLite store (MLflow would take the current directory); elsewhere the store's own choice."""
    file = database(uri)
    return (file.parent / "mlartifacts").as_uri() if file else None


def give_up_soon() -> None:
    """Let MLflow's client give up on a server that is away within seconds; its own default is minutes. What the caller has set counts."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def make_database(uri: str, make: Callable[[str], object]) -> None:
    """Make an SQLite store where there is none: whole or not at all.

    MLflow makes its tables in dozens of statements that no transaction holds together, and never mends a database that was left in between.

    Args:
        uri: of the store; nothing is done for other kinds.
        make: makes the store that a URI names.

    Raises:
        OSError: there is no place for it.
    """
    file = database(uri)
    if file is None or file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        make(f"sqlite:///{partial}")
        with suppress(FileExistsError):  # somebody else was faster
            os.link(partial, file)
    finally:
        partial.unlink(missing_ok=True)
