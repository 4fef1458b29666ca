"""Local tracking databases: created whole or not at all, with the files of their experiments beside them."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlparse

_NOT_LOGGED_IN = 401


class TrackingClient(Protocol):
    """The part of MLflow's client that shows whether its store answers."""

    def search_experiments(self, *, max_results: int) -> object:
        """Some experiments of the store."""
        ...


def reason_of(error: Exception) -> str:
    """Why a store did not do what it was asked: one line, with what to do about a login that it refuses."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    text = " ".join(str(error).split()) or type(error).__name__
    if status == _NOT_LOGGED_IN:
        return (
            "the server does not accept the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            f"MLFLOW_TRACKING_TOKEN, to one that is valid: {text:.150}"
        )
    return f"{text:.300}"


Client = TypeVar("Client", bound=TrackingClient)


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other."""
    parsed = urlparse(uri)
    return Path(parsed.path[1:]).absolute() if parsed.scheme == "sqlite" else None


def artefact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside an SQLite store; None if the store decides.

    MLflow's default for SQLite is the current directory.
    """
    file = database(uri)
    return (file.parent / "mlartifacts").as_uri() if file else None


def open_tracking(uri: str, client: Callable[[str], Client]) -> Client:
    """A client of a tracking store that answers. A local database is created on demand.

    Args:
        uri: of the store.
        client: creates a client for a URI: `mlflow.MlflowClient`, which this package does not import.

    Raises:
        Exception: whatever MLflow and its stores raise if the store cannot be created, reached or read.
    """
    # By default MLflow tries for minutes to reach a server that does not answer.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    make_database(uri, lambda new: client(new).search_experiments(max_results=1))
    opened = client(uri)
    opened.search_experiments(max_results=1)
    return opened


def make_database(uri: str, make: Callable[[str], object]) -> None:
    """Create an SQLite store that does not exist: completely or not at all.

    MLflow creates its tables in dozens of statements without a transaction, and never repairs an incomplete database.

    Args:
        uri: of the store; other kinds of stores are left alone.
        make: creates the store of a URI.

    Raises:
        OSError: the file cannot be written.
    """
    file = database(uri)
    if file is None or file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        make(f"sqlite:///{partial}")
        with suppress(FileExistsError):  # another process was faster
            os.link(partial, file)
    finally:
        partial.unlink(missing_ok=True)
