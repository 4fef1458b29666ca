"""Artefacts: a directory with its data, then a `manifest.json` written last and atomically. No manifest: not an artefact."""

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from clara.errors import InputError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "faiss-cpu", "bm25s")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def hash_of(value: Any) -> str:
    """Sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Sha256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_directory(path: str | os.PathLike[str]) -> Path:
    """A directory, made where there is none: ahead of the work whose results go there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return Path(path)


def _unwritable(path: str | os.PathLike[str], error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror or error}); choose a directory that you may write to, with room")


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file or nothing: a temporary name beside it, flushed to disk, then renamed."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        with open(partial, "wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise _unwritable(path, error) from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine an artefact's content, where they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def file_entry(directory: str | os.PathLike[str], path: str, rows: int | None = None) -> dict[str, Any]:
    """A manifest's entry for one file of an artefact: relative path, bytes, sha256 and, if given, rows."""
    full = Path(directory) / path
    entry: dict[str, Any] = {"path": path, "bytes": full.stat().st_size, "sha256": sha256_file(full)}
    if rows is not None:
        entry["rows"] = rows
    return entry


def write_manifest(
    directory: str | os.PathLike[str],
    *,
    kind: str,
    files: Iterable[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
    fingerprint: str = "",
    parent: str = "",
    **fields: Any,
) -> dict[str, Any]:
    """Complete an artefact: every other byte must be on disk by now.

    Args:
        directory: the artefact.
        kind: MEMORY, INDEX, QUESTIONS, EXAMPLES or CHECKPOINT.
        files: entries as of `file_entry`.
        recipe: what made it: resolved settings and the hashes of its inputs; `up_to_date` compares it.
        counts: records in, out, dropped and failed, by reason.
        fingerprint: of the vectors that it holds or makes.
        parent: manifest hash of the version that it follows.
        fields: what only this kind has.
    """
    manifest = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "parent": parent,
        "counts": dict(counts or {}),
        "files": sorted((dict(f) for f in files), key=lambda f: f["path"]),
        "made_by": {
            "recipe": json.loads(canonical_json(recipe)),
            "versions": versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        **fields,
    }
    atomic_write(Path(directory) / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def read_manifest(directory: str | os.PathLike[str], kind: str | None = None) -> dict[str, Any]:
    """An artefact's manifest.

    Raises:
        InputError: there is none (unfinished or no artefact), it is not JSON, of another kind, or of a newer format.
    """
    path = Path(directory) / MANIFEST
    wanted = kind or "artefact"
    if not path.is_file():
        raise InputError(
            f"{directory}: no {MANIFEST}, so this is no finished {wanted}; make it (or run the interrupted command again), or correct the path"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, version = manifest["kind"], manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest ({error!r}); make the {wanted} again") from error
    if kind is not None and found != kind:
        raise InputError(f"{directory}: holds {found}, expected {kind}; give the directory of a {kind}")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {version}, this program reads {FORMAT_VERSION}; use the version that made it, or make it again"
        )
    return manifest


def manifest_hash(directory: str | os.PathLike[str]) -> str:
    """Hash of an artefact: of its manifest without when and with which packages it was made, so an identical rebuild hashes equal."""
    manifest = read_manifest(directory)
    return hash_of({key: value for key, value in manifest.items() if key != "made_by"})


def up_to_date(directory: str | os.PathLike[str], kind: str, recipe: Mapping[str, Any]) -> bool:
    """Whether the artefact is there, made by this recipe, with every file at its size (bytes are checked by `verify`)."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        return False
    try:
        manifest = read_manifest(directory, kind)
    except InputError:
        return False
    if manifest["made_by"]["recipe"] != json.loads(canonical_json(recipe)):
        return False
    files = ((Path(directory) / f["path"], f["bytes"]) for f in manifest["files"])
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def verify(directory: str | os.PathLike[str], kind: str | None = None, *, folders: Collection[str] | None = None) -> dict[str, Any]:
    """Read every byte of an artefact, or of some of its folders, against its manifest, which is returned.

    Raises:
        InputError: a file is missing, or its size or sha256 differs.
    """
    manifest = read_manifest(directory, kind)
    for entry in manifest["files"]:
        if folders is not None and entry["path"].partition("/")[0] not in folders:
            continue
        path = Path(directory) / entry["path"]
        if not path.is_file():
            raise InputError(f"{path}: missing, though the manifest lists it; make the artefact again")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise InputError(f"{path}: {size} bytes, the manifest says {entry['bytes']}; the file is damaged, make the artefact again")
        if sha256_file(path) != entry["sha256"]:
            raise InputError(f"{path}: its sha256 is not the manifest's; the file is damaged, make the artefact again")
    return manifest
