"""Artefacts into folders: files of one artefact in another, and local artefacts into a bucket."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clara.errors import InputError
from clara.storage import folders, paths
from clara.storage.bucket import Bucket
from clara.storage.cache import AT_ONCE, cache_directory, download, locked, progress_bar
from clara.storage.manifest import MANIFEST, hash_of, make_directory, read_manifest


@contextmanager
def published(directory: paths.Name) -> Iterator[Path]:
    """Yield a local directory to write an artefact into; for a URL, its files are uploaded afterwards.

    The manifest is uploaded last, so that an interrupted upload leaves no artefact. The files of a failed run stay in
    the cache, and the next one resumes from them.

    Raises:
        InputError: the store does not answer, or refuses.
    """
    if not paths.is_url(directory):
        yield Path(directory)
        return
    target = Bucket(os.fspath(directory))
    name = hash_of(str(target))
    scratch = cache_directory() / "unpublished" / name
    with locked(f"unpublished-{name}"):
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch
        manifest = read_manifest(scratch)
        target.remove([MANIFEST])
        link(scratch, directory, manifest["files"])
        target.tags(manifest["files"])
        target.write(MANIFEST, (scratch / MANIFEST).read_bytes())
        shutil.rmtree(scratch)


def link(source: paths.Name, target: paths.Name, entries: Sequence[Mapping[str, Any]]) -> None:
    """Make files of an artefact part of another one too.

    On this machine they become hard links, or copies where the file system has no hard links; within one store the
    store copies them.

    Args:
        source: the artefact that has the files.
        target: the other artefact.
        entries: of the manifest.

    Raises:
        InputError: a file is missing or damaged, or the disk or the store refuses.
    """
    if paths.is_url(source) or paths.is_url(target):
        with (
            progress_bar(f"copy to {target}", sum(entry["bytes"] for entry in entries)) as advance,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            for _ in pool.map(lambda entry: _transfer_file(source, target, entry, advance), entries):
                pass
        return
    for entry in entries:
        origin, place = Path(source) / entry["path"], Path(target) / entry["path"]
        if not origin.is_file() or origin.stat().st_size != entry["bytes"]:
            raise InputError(
                f"{origin}: missing, or not of {entry['bytes']} bytes as the manifest says; copy the artefact again, "
                "or rebuild it"
            )
        if not (place.is_file() and place.samefile(origin)):
            make_directory(place.parent)
            folders.link_or_copy(origin, place, entry["sha256"])


def _transfer_file(
    source: paths.Name, target: paths.Name, entry: Mapping[str, Any], advance: Callable[[int], Any]
) -> None:
    path = entry["path"]
    if not paths.is_url(target):
        place = Path(target) / path
        if not place.is_file() or folders.sha256_file(place) != entry["sha256"]:
            download(Bucket(os.fspath(source)), entry, place)
    elif paths.is_url(source):
        _copy_between(Bucket(os.fspath(source)), Bucket(os.fspath(target)), entry)
    else:
        origin = Path(source) / path
        if not origin.is_file() or folders.sha256_file(origin) != entry["sha256"]:
            raise InputError(
                f"{origin}: missing, or its sha256 is not the manifest's; copy the artefact again, or make it again"
            )
        Bucket(os.fspath(target)).put(path, origin)
    advance(entry["bytes"])


def _copy_between(here: Bucket, there: Bucket, entry: Mapping[str, Any]) -> None:
    path = entry["path"]
    found = here.stored(path)
    if found is None or found.bytes != entry["bytes"]:
        size = "missing" if found is None else f"{found.bytes} bytes"
        raise InputError(
            f"{here}/{path}: {size}, its manifest says {entry['bytes']} bytes; make that artefact again, "
            "or copy it there again"
        )
    if type(here.system) is not type(there.system):
        with TemporaryDirectory(prefix="clara-") as scratch:
            download(here, entry, Path(scratch) / "file")
            there.put(path, Path(scratch) / "file")
    elif there.stored(path) != found:  # an equal tag is equal content
        there.copy(here, path)
