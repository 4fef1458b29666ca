"""Manifests of artefacts: `manifest.json` is written last and atomically. A directory without one is not an artefact.

A directory is a path, or a URL that fsspec knows. `clara.storage.artefact` opens artefacts.
"""

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.storage import base, folders, paths
from clara.storage.folders import atomic_write, sha256_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_FIELDS = ("fingerprint", "counts", "files", "made_by")
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "faiss-cpu", "bm25s")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def hash_of(value: Any) -> str:
    """Sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def make_directory(path: paths.Name) -> Path:
    """A directory of this machine, made where there is none: ahead of the work whose results go there.

    Raises:
        InputError: it cannot be made, or is a URL.
    """
    if paths.is_url(path):
        raise InputError(
            f"{path}: a URL, and this is written to a directory of this machine only; give one, "
            "and copy the result there after"
        )
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise folders.unwritable(path, error) from error
    return Path(path)


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of the packages that determine an artefact's content, where they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def file_entry(directory: paths.Name, path: str, rows: int | None = None) -> dict[str, Any]:
    """A manifest's entry for one file of an artefact: relative path, bytes, sha256 and, if given, rows."""
    if paths.is_url(directory):
        return _entry(path, folders.folder(directory).read(path) or b"", rows)
    full = Path(directory) / path
    entry: dict[str, Any] = {"path": path, "bytes": full.stat().st_size, "sha256": sha256_file(full)}
    return entry if rows is None else {**entry, "rows": rows}


def _entry(path: str, data: bytes, rows: int | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return entry if rows is None else {**entry, "rows": rows}


def write_file(directory: paths.Name, path: str, data: bytes, rows: int | None = None) -> dict[str, Any]:
    """Write one file of an artefact, whole or not at all. Returns its manifest entry."""
    folders.folder(directory).write(path, data)
    return _entry(path, data, rows)


def write_manifest(
    directory: paths.Name,
    *,
    kind: str,
    files: Iterable[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
    fingerprint: str = "",
    parent: str = "",
    aside: Mapping[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Complete an artefact: every other byte must be there by now.

    Args:
        directory: the artefact.
        kind: MEMORY, INDEX, QUESTIONS, EXAMPLES or CHECKPOINT.
        files: entries as returned by `file_entry`.
        recipe: what made it: resolved settings and the hashes of its inputs; `up_to_date` compares it.
        counts: records in, out, dropped and failed, by reason.
        fingerprint: of the vectors that it holds or makes.
        parent: manifest hash of the version that it follows.
        aside: stored beside the recipe; neither compared nor part of the artefact's hash.
        fields: what only this kind has.

    Raises:
        InputError: an artefact of another kind is there, the place refuses, or the store of a URL lacks a file, or has
            it in another size.
    """
    refuse_other(directory, kind)
    files = sorted((dict(f) for f in files), key=lambda f: f["path"])
    if paths.is_url(directory):
        _check_arrived(directory, files)
    manifest = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "parent": parent,
        "counts": dict(counts or {}),
        "files": files,
        "made_by": {
            "recipe": json.loads(canonical_json(recipe)),
            "versions": versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **(aside or {}),
        },
        **fields,
    }
    atomic_write(paths.join(directory, MANIFEST), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _check_arrived(directory: paths.Name, files: Iterable[Mapping[str, Any]]) -> None:
    wanted = {entry["path"]: entry["bytes"] for entry in files}
    found = folders.folder(directory).sizes(wanted)
    for path, size in wanted.items():
        if found.get(path) != size:
            raise InputError(
                f"{directory}/{path}: {found.get(path, 'no')} bytes there, {size} were written; "
                "let nothing else write there, and run again"
            )


def read_manifest(directory: paths.Name, kind: str | None = None) -> dict[str, Any]:
    """An artefact's manifest.

    Raises:
        InputError: there is none (unfinished or no artefact), it is not JSON, of another kind, or of a newer format.
    """
    return parse_manifest(folders.folder(directory).read(MANIFEST), directory, kind)


def parse_manifest(raw: bytes | None, directory: paths.Name, kind: str | None = None) -> dict[str, Any]:
    """The manifest in the bytes of a `manifest.json`; `directory` is for messages, None means that the file is missing.

    Raises:
        InputError: see `read_manifest`.
    """
    path = paths.join(directory, MANIFEST)
    wanted = kind or "artefact"
    if raw is None:
        raise InputError(
            f"{directory}: no {MANIFEST}, so this is no finished {wanted}; "
            "make it (or run the interrupted command again), or correct the path"
        )
    try:
        manifest = json.loads(raw.decode("utf-8"))
        found, version = manifest["kind"], manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest ({error!r}); make the {wanted} again") from error
    if kind is not None and found != kind:
        raise InputError(f"{directory}: holds {found}, expected {kind}; give the directory of a {kind}")
    if missing := [name for name in _FIELDS if name not in manifest]:
        raise InputError(f"{path}: {', '.join(missing)} missing; take an intact {wanted}, or make it again")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {version}, this program reads {FORMAT_VERSION}; use the version that made it, "
            "or make it again"
        )
    return manifest


def manifest_hash(directory: paths.Name) -> str:
    """Hash of the artefact in a directory, see `hash_of_manifest`."""
    return hash_of_manifest(read_manifest(directory))


def hash_of_manifest(manifest: Mapping[str, Any]) -> str:
    """Hash of a manifest without time and package versions, so that an identical rebuild has the same hash."""
    return hash_of({key: value for key, value in manifest.items() if key != "made_by"})


def refuse_other(directory: paths.Name, kind: str) -> None:
    """Refuse to write an artefact over one of another kind, even with `--overwrite`.

    Raises:
        InputError: a finished artefact of another kind is there.
    """
    raw = folders.folder(directory).read(MANIFEST)
    try:
        found = json.loads(raw or b"null")
    except ValueError:
        return  # damaged, or none of ours
    if isinstance(found, dict) and {"kind", "format_version"} <= found.keys() and found["kind"] != kind:
        raise InputError(
            f"{directory}: holds {found['kind']}, which {kind} would destroy; it stays as it is, give another directory"
        )


def up_to_date(directory: paths.Name, kind: str, recipe: Mapping[str, Any]) -> bool:
    """Whether the artefact exists, made by this recipe, with all files of the right size.

    A command checks this before any work. `Artefact.verify` checks the bytes.

    Raises:
        InputError: an artefact of another kind is there, see `refuse_other`.
    """
    refuse_other(directory, kind)
    try:
        manifest = read_manifest(directory, kind)
    except base.StorageError:
        raise
    except InputError:
        return False
    if manifest["made_by"]["recipe"] != json.loads(canonical_json(recipe)):
        return False
    wanted = {f["path"]: f["bytes"] for f in manifest["files"]}
    return folders.folder(directory).sizes(wanted) == wanted
