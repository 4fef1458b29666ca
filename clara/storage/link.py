"""Files of one artefact in another: as hard links where possible, else copied."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.storage import paths
from clara.storage.cache import transfer
from clara.storage.folders import sha256_file
from clara.storage.manifest import make_directory


def link(source: paths.Name, target: paths.Name, entries: Sequence[Mapping[str, Any]]) -> None:
    """Have files of an artefact in another artefact too: hard links; in a bucket, copies that the store makes.

    Raises:
        InputError: a file is missing or damaged, or the disk or the store refuses.
    """
    if paths.is_url(source) or paths.is_url(target):
        transfer(source, target, entries)
        return
    for entry in entries:
        _link_file(Path(source), Path(target), entry)


def _link_file(source: Path, target: Path, entry: Mapping[str, Any]) -> None:
    """A hard link, or a copy that is read back where the file system makes none."""
    origin, place = source / entry["path"], target / entry["path"]
    if not origin.is_file() or origin.stat().st_size != entry["bytes"]:
        raise InputError(
            f"{origin}: missing, or not of {entry['bytes']} bytes as the manifest says; copy the artefact anew, or rebuild it"
        )
    if place.is_file() and place.samefile(origin):
        return
    make_directory(place.parent)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        os.link(origin, partial)
    except OSError:  # another file system, or one without hard links
        try:
            shutil.copyfile(origin, partial)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(
                f"{place}: cannot be written ({error.strerror or error}); choose a directory with room"
            ) from error
        if sha256_file(partial) != entry["sha256"]:
            partial.unlink()
            raise InputError(
                f"{origin}: its sha256 is not the manifest's; the file is damaged, copy the artefact anew"
            ) from None
    os.replace(partial, place)
