"""Local copies of artefacts in a bucket: copied into a cache once, each file checked against the manifest.

The cache is `CLARA_CACHE` (default `~/.cache/clara`). Files are stored by their sha256, so that versions of a MEMORY
share what they have in common; an artefact is a folder of hard links to them, named by its manifest's sha256. An
interrupted copy is resumed. Nothing is ever removed: delete the whole folder while no command runs.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from clara.errors import InputError
from clara.progress import Progress
from clara.storage import base, folders, paths
from clara.storage.bucket import Bucket
from clara.storage.manifest import MANIFEST, hash_of, parse_manifest

CACHE = "CLARA_CACHE"
_BLOCK_BYTES = 32 * 2**20
AT_ONCE = 8
_SHOWN_BYTES = 32 * 2**20  # for less no bar is drawn
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_directory() -> Path:
    """The folder of the copies."""
    chosen = os.environ.get(CACHE)
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clara"


@contextmanager
def locked(lock: str) -> Iterator[None]:
    """Hold a lock of the cache, so that ranks and workers of one machine copy an artefact once.

    Raises:
        InputError: the cache can't be written.
    """
    path = cache_directory() / "locks" / lock
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield
    except OSError as error:
        raise folders.unwritable(f"{cache_directory()} (the cache; {CACHE} names another)", error) from error


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], Any]]:
    """Progress over bytes: call what it yields with the bytes that were just copied."""
    with Progress(total, what, "B", unit_scale=True, shown=total >= _SHOWN_BYTES) as bar:
        yield bar.update


@dataclass(frozen=True)
class CachedCopy:
    """The copy of a bucket's artefact in the cache: its manifest is there, its files as they are fetched."""

    source: Bucket
    folder: Path
    manifest: Mapping[str, Any]

    def fetch(self, entries: Sequence[Mapping[str, Any]], *, verify: bool = False) -> None:
        """Copy files that are missing in the cache.

        Args:
            entries: of the manifest.
            verify: read every byte against its sha256, and copy damaged files again.

        Raises:
            InputError: a file is not what its manifest says, there is no room, or the store does not answer.
        """
        _fetch(self.source, self.folder, entries, verify=verify)


def begin_copy(url: str, kind: str) -> CachedCopy:
    """Make an artefact's folder in the cache, with its manifest; no other file is copied yet.

    Raises:
        InputError: no finished artefact of that kind there, or a manifest that lists files outside of it.
    """
    source = Bucket(url)
    raw = source.read(MANIFEST) or b""
    manifest = parse_manifest(raw or None, url, kind)
    for entry in manifest["files"]:
        parts = Path(entry["path"]).parts
        if (
            not parts
            or Path(entry["path"]).is_absolute()
            or ".." in parts
            or not _SHA256.fullmatch(str(entry["sha256"]))
        ):
            raise InputError(f"{url}/{MANIFEST}: lists {entry}, which is no file inside of it; take an intact artefact")
    folder = cache_directory() / "artefacts" / hashlib.sha256(raw).hexdigest()
    if not (folder / MANIFEST).is_file():
        with locked(folder.name):
            folders.atomic_write(folder / MANIFEST, raw)
    return CachedCopy(source, folder, manifest)


def _content(entry: Mapping[str, Any]) -> Path:
    return cache_directory() / "files" / str(entry["sha256"])


def _missing(folder: Path, files: Sequence[Mapping[str, Any]], *, verify: bool) -> list[Mapping[str, Any]]:
    there = folders.Local(folder)
    found = there.sizes(entry["path"] for entry in files)
    missing = [entry for entry in files if found.get(entry["path"]) != entry["bytes"]]
    if verify:
        for entry in files:
            if entry not in missing and folders.sha256_file(folder / entry["path"]) != entry["sha256"]:
                _content(entry).unlink(missing_ok=True)
                (folder / entry["path"]).unlink()
                missing.append(entry)
    return missing


def _fetch(source: Bucket, folder: Path, files: Sequence[Mapping[str, Any]], *, verify: bool = False) -> None:
    """Have files of an artefact in its folder of the cache; what is there is not copied again."""
    if not verify and not _missing(folder, files, verify=False):
        return
    with locked(folder.name):
        missing = _missing(folder, files, verify=verify)
        total, free = sum(entry["bytes"] for entry in missing), shutil.disk_usage(cache_directory()).free
        if total > free:
            raise InputError(
                f"{source}: {total} bytes to copy into {cache_directory()}, where {free} are free; make room, "
                f"or name another place with {CACHE}"
            )
        with progress_bar(f"copy {source}", total) as advance, ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(lambda entry: _fetch_file(source, folder, entry, advance), missing):
                pass


def _fetch_file(source: Bucket, folder: Path, entry: Mapping[str, Any], advance: Callable[[int], Any]) -> None:
    """One file: from another artefact of the cache that has it too, or from the bucket."""
    path, content = folder / entry["path"], _content(entry)
    with locked(f"content-{entry['sha256'][:3]}"):
        if not content.is_file() or content.stat().st_size != entry["bytes"]:
            download(source, entry, content, advance)
        path.parent.mkdir(parents=True, exist_ok=True)
        folders.link_or_copy(content, path, entry["sha256"])


def download(
    source: Bucket, entry: Mapping[str, Any], target: Path, advance: Callable[[int], Any] = lambda done: None
) -> None:
    """Copy one file from a bucket, resuming an interrupted copy; it appears at `target` once its sha256 is right.

    Args:
        source: the artefact.
        entry: of its manifest.
        target: where it goes, on this machine; nobody else may be at it.
        advance: called with the bytes of each block.

    Raises:
        InputError: it is missing, or its size or sha256 is not the manifest's.
    """
    where, size = f"{source}/{entry['path']}", int(entry["bytes"])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with open(partial, "ab") as stream:
        if stream.seek(0, os.SEEK_END) > size:
            stream.truncate(0)
        begin = stream.seek(0, os.SEEK_END)
        advance(begin)
        while begin < size:
            block = source.read(entry["path"], begin, min(begin + _BLOCK_BYTES, size))
            if not block:
                found = "missing" if block is None else f"{begin} bytes"
                raise InputError(
                    f"{where}: {found}, its manifest says {size} bytes; make the artefact again, or copy it there again"
                )
            stream.write(block)
            begin += len(block)
            advance(len(block))
    if folders.sha256_file(partial) != entry["sha256"]:
        partial.unlink()
        raise InputError(
            f"{where}: its sha256 is not the manifest's; the object is damaged, make the artefact again, "
            "or copy it there again"
        )
    os.replace(partial, target)


def local_folder(directory: paths.Name) -> Path:
    """The local directory of a folder without a manifest, such as a language model's: itself, or the copy of a URL.

    A copy is identified by the store's listing: names, sizes and tags. Callers that know a hash check it.

    Raises:
        InputError: nothing there, no room, or a store that does not answer.
    """
    if not paths.is_url(directory):
        return Path(directory)
    source = Bucket(os.fspath(directory))
    listed = source.files()
    if not listed:
        raise InputError(f"{directory}: nothing there; correct the URL")
    return _copy_listed(source, listed)


def local_file(path: paths.Name) -> Path:
    """The local path of a file: itself, or the copy of a URL.

    Raises:
        InputError: see `local_folder`.
    """
    if not paths.is_url(path):
        return Path(path)
    directory, _, name = os.fspath(path).rpartition("/")
    source = Bucket(directory)
    stored = source.stored(name)
    if stored is None:
        raise InputError(f"{path}: not there; correct the URL")
    return _copy_listed(source, {name: stored}) / name


def _copy_listed(source: Bucket, listed: Mapping[str, base.Stored]) -> Path:
    """The cache's folder with these files of a bucket, as they are listed there."""
    key = hash_of({name: [str(source), stored.bytes, stored.tag] for name, stored in listed.items()})
    folder = cache_directory() / "folders" / key
    if folder.is_dir():
        return folder
    with locked(key), progress_bar(f"copy {source}", sum(stored.bytes for stored in listed.values())) as advance:
        scratch = folder.with_suffix(".partial")
        for name, stored in listed.items():
            path = scratch / name
            if folder.is_dir() or (path.is_file() and path.stat().st_size == stored.bytes):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.part")
            with open(partial, "wb") as stream:
                for begin in range(0, stored.bytes, _BLOCK_BYTES):
                    advance(stream.write(source.read(name, begin, min(begin + _BLOCK_BYTES, stored.bytes)) or b""))
            os.replace(partial, path)
        if not folder.is_dir():
            os.replace(scratch, folder)
    return folder
