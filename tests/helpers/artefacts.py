"""Artefacts as tests look at them."""

from collections.abc import Mapping
from typing import Any

from clara.storage.artefact import Artefact
from clara.storage.manifest import read_manifest
from clara.storage.paths import Name


def verify(directory: Name, kind: str | None = None) -> Mapping[str, Any]:
    """The manifest of an artefact after a check of every byte; `kind` defaults to the one that the manifest names."""
    return Artefact.open(directory, kind or read_manifest(directory)["kind"], verify=True).manifest
