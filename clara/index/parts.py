"""Folders of an INDEX beside its FAISS file: made, linked from an older INDEX, moved into place."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write
from clara.storage.manifest import file_entry
from clara.storage.transfer import link

_DESCRIPTIONS: dict[str, dict[str, type]] = {"words": {}, "dense": {"model": str, "size": int}}
"""Parts that a manifest may describe, and fields of the description without which a part cannot be opened."""
_WORDS_FOR = {str: "a text", int: "a whole number", dict: "an object"}

_log = logging.getLogger(__name__)


def rows_hash(store: MemoryStore) -> str:
    """Hash of the row ids of a MEMORY. As a row id is the hash of title and text, it is a hash of all texts."""
    return hashlib.sha256(store.row_ids.astype("<i8").tobytes()).hexdigest()


def files_of(artefact: Artefact, name: str) -> list[Mapping[str, Any]]:
    """Manifest entries of the files of a part; none where the INDEX has no such part."""
    return [entry for entry in artefact.manifest["files"] if entry["path"].startswith(f"{name}/")]


def check_described(artefact: Artefact) -> None:
    """Refuse an INDEX whose manifest does not say what it is of and what parts it has.

    Raises:
        InputError: the field, and what was expected.
    """
    manifest = artefact.manifest
    fields: dict[str, Any] = {"memory": manifest.get("memory")}
    expected: dict[str, type] = {"memory": str}
    for name, required in _DESCRIPTIONS.items():
        if described := manifest.get(name):
            fields[name], expected[name] = described, dict
            if isinstance(described, dict):
                fields |= {f"{name}.{field}": described.get(field) for field in required}
                expected |= {f"{name}.{field}": kind for field, kind in required.items()}
    for field, value in fields.items():
        if not isinstance(value, expected[field]):
            raise InputError(
                f"{artefact.name} manifest.json: {field} is {value!r}, expected {_WORDS_FOR[expected[field]]}; copy "
                "the INDEX again, or build it again"
            )


def fetch(artefact: Artefact, name: str) -> Path:
    """The folder of a part, its files on this machine and of the right size.

    Raises:
        InputError: a file is missing or damaged.
    """
    for entry in files_of(artefact, name):
        artefact.file(entry["path"])
    artefact.check_sizes(only={name})
    return artefact.folder / name


def make(
    directory: Path,
    name: str,
    wanted: Mapping[str, Any],
    older: Artefact | None,
    build: Callable[[], Mapping[str, Any]] | None,
) -> dict[str, Any] | None:
    """Link or build a part in a folder where an INDEX is being made, unless it is finished there.

    Args:
        directory: gets the part's folder.
        name: of the part: its folder, and the field of the manifest that describes it.
        wanted: what its description must say. A part of another description is not taken.
        older: INDEX whose part is linked if its description fits; None: none.
        build: writes the files and returns what else describes them; None: the part is linked or left out.

    Returns:
        Its description for the manifest; None: there is no part.

    Raises:
        InputError: a file of the older INDEX is damaged, or `build` fails.
    """
    note = directory / f"{name}.json"
    if note.is_file() and (directory / name).is_dir():
        described: dict[str, Any] = json.loads(note.read_text())
        if wanted.items() <= described.items():
            return described
    for left in (directory / name).glob("*"):
        left.unlink()  # never written over: it may be a link to the older part
    found = {} if older is None else older.manifest.get(name) or {}
    if older is not None and found and wanted.items() <= found.items():
        fetch(older, name)
        link(older.folder, directory, files_of(older, name))
        _log.info("index: the part %s is that of %s", name, older.name)
        described = dict(found)
    elif build is not None:
        described = {**wanted, **build()}
    else:
        return None
    atomic_write(note, json.dumps(described))
    return described


def move(source: Path, output: Path, parts: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Move finished parts into an INDEX, in place of those that are there. Returns the entries of their files.

    Args:
        source: folder in which `make` made them.
        output: the INDEX.
        parts: name and description of each; None: there is no part, and one that is there is removed.
    """
    entries = []
    for name, described in parts.items():
        shutil.rmtree(output / name, ignore_errors=True)
        if described is not None:
            os.replace(source / name, output / name)
            entries += [file_entry(output, f"{name}/{path.name}") for path in sorted((output / name).iterdir())]
    return entries
