"""Artefacts as tests look at them."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clara.memory.shards import PLAN
from clara.storage.artefact import Artefact
from clara.storage.manifest import read_manifest
from clara.storage.paths import Name


def verify(directory: Name, kind: str | None = None) -> Mapping[str, Any]:
    """The manifest of an artefact after a check of every byte; `kind` defaults to the one that the manifest names."""
    return Artefact.open(directory, kind or read_manifest(directory)["kind"], verify=True).manifest


def finished_shards(directory: Path, started: float) -> list[str]:
    """Names of the shards of a MEMORY that were finished, or verified, since `started` (seconds since the epoch)."""
    names = []
    for plan in directory.glob(f"*shard-*/{PLAN}"):
        with suppress(FileNotFoundError):
            if plan.stat().st_mtime >= started:
                names.append(plan.parent.name)
    return names
