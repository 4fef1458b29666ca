"""What everything that logs runs to a tracking server must agree on: names, where experiments keep their files, how a local database comes to be."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlparse

_NOT_IN_NAMES, _LONGEST_NAME = re.compile(r"[^/\w.\-]"), 250
"""MLflow's own rules for names of parameters, metrics and tags, and no spaces; it also wants them to be normal relative paths."""


def tracking_names(names: Iterable[str]) -> dict[str, str]:
    """Each name → how a tracking store takes it: `@` is `_at_`, spaces and characters it refuses are `_`; others stay as they are.

    Names that would become equal, or were too long and are cut, end in a part of their own hash: two names are never
    one.
    """
    cleaned = {name: _cleaned(name) for name in dict.fromkeys(names)}
    shared = Counter(cleaned.values())
    return {
        name: _marked(name, clean) if (name != clean and shared[clean] > 1) or len(clean) > _LONGEST_NAME else clean
        for name, clean in cleaned.items()
    }


def _cleaned(name: str) -> str:
    parts = _NOT_IN_NAMES.sub("_", name.replace("@", "_at_")).split("/")
    return "/".join(part.replace(".", "_") or "_" if part.strip(".") == "" else part for part in parts)


def _marked(name: str, clean: str) -> str:
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{clean[: _LONGEST_NAME - len(mark) - 1]}-{mark}"


class TrackingClient(Protocol):
    """As much of MLflow's client as is needed to see whether its store answers."""

    def search_experiments(self, *, max_results: int) -> object:
        """Some experiments of the store."""
        ...


Client = TypeVar("Client", bound=TrackingClient)


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other."""
    parsed = urlparse(uri)
    return Path(parsed.path[1:]).absolute() if parsed.scheme == "sqlite" else None


def artefact_location(uri: str) -> str | None:
    """Where a new experiment keeps files: beside an SQLite store (MLflow would take the current directory); elsewhere the store's own choice."""
    file = database(uri)
    return (file.parent / "mlartifacts").as_uri() if file else None


def open_tracking(uri: str, client: Callable[[str], Client]) -> Client:
    """A client of a tracking store that answers; a local database is made where there is none.

    Args:
        uri: of the store.
        client: makes one for a URI: `mlflow.MlflowClient`, which this package does not import.

    Raises:
        Exception: what MLflow and its stores raise where the store can't be made, reached or read.
    """
    _give_up_soon()
    make_database(uri, lambda new: client(new).search_experiments(max_results=1))
    opened = client(uri)
    opened.search_experiments(max_results=1)
    return opened


def _give_up_soon() -> None:
    """Let MLflow's client give up on a server that is away within seconds; its own default is minutes. What the caller has set counts."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def make_database(uri: str, make: Callable[[str], object]) -> None:
    """Make an SQLite store where there is none: whole or not at all.

    MLflow makes its tables in dozens of statements that no transaction holds together, and never mends a database that
    was left in between.

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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration's leaves by dotted key."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
