"""Where a tracking server's experiments keep their files: what everything that logs runs must agree on."""

from pathlib import Path
from urllib.parse import urlparse


def artefact_location(uri: str) -> str | None:
    """Where a new experiment keeps files: beside an SQLite store (MLflow would take the current directory); elsewhere the store's own choice."""
    parsed = urlparse(uri)
    return (Path(parsed.path[1:]).absolute().parent / "mlartifacts").as_uri() if parsed.scheme == "sqlite" else None
