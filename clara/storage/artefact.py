"""Artefacts: opened once, then passed on as objects."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from clara.errors import InputError
from clara.storage import paths
from clara.storage.cache import CachedCopy, begin_copy
from clara.storage.folders import sha256_file
from clara.storage.manifest import hash_of_manifest, read_manifest


@dataclass(frozen=True)
class Artefact:
    """A finished artefact, with its files on this machine.

    Attributes:
        kind: MEMORY, INDEX, QUESTIONS, EXAMPLES, CHECKPOINT and so on.
        name: the path or URL that it was opened by.
        folder: the local folder with its files; for a URL the copy in the cache.
        manifest: its manifest.
        copy: fetches files of a URL; None for a local path.
    """

    kind: str
    name: str
    folder: Path
    manifest: Mapping[str, Any]
    copy: CachedCopy | None = None

    @classmethod
    def open(cls, source: "paths.Name | Artefact", kind: str, *, verify: bool = False, lazy: bool = False) -> Self:
        """Read an artefact's manifest, and copy the files of a URL into the cache. An opened one is returned as it is.

        Args:
            source: path, URL, or an artefact that is open already.
            kind: the kind that it must be of.
            verify: compare every byte with the manifest, see `verify`.
            lazy: copy files of a URL only when `file` is called for them.

        Raises:
            InputError: no finished artefact of that kind, a file that differs from the manifest, no disk space, or a
                store that does not answer.
        """
        if isinstance(source, Artefact):
            opened = source if isinstance(source, cls) else cls(**vars(source))
        elif paths.is_url(source):
            copy = begin_copy(os.fspath(source), kind)
            if not lazy:
                copy.fetch(copy.manifest["files"])
            opened = cls(kind, os.fspath(source), copy.folder, copy.manifest, copy)
        else:
            opened = cls(kind, os.fspath(source), Path(source), read_manifest(source, kind))
        if opened.kind != kind:
            raise InputError(f"{opened.name}: is {opened.kind}, expected {kind}; give the directory of a {kind}")
        if verify:
            opened.verify()
        return opened

    @cached_property
    def hash(self) -> str:
        """Hash of the manifest, without time and package versions: other artefacts refer to this one by it."""
        return hash_of_manifest(self.manifest)

    def file(self, path: str) -> Path:
        """The local path of one file, which is fetched first if the artefact was opened lazily."""
        if self.copy is not None:
            self.copy.fetch([entry for entry in self.manifest["files"] if entry["path"] == path])
        return self.folder / path

    def check_sizes(self, *, only: Collection[str] | None = None) -> None:
        """Compare the size of each file with the manifest.

        Args:
            only: check only the files below these folders of the artefact.

        Raises:
            InputError: a file is missing or has another size.
        """
        for _ in self._whole_files(self._entries(only)):
            pass

    def verify(self, *, only: Collection[str] | None = None) -> None:
        """Compare every byte with the manifest; damaged copies of a URL are fetched again.

        Args:
            only: check only the files below these folders of the artefact.

        Raises:
            InputError: a file is missing, or its size or sha256 differs.
        """
        entries = self._entries(only)
        if self.copy is not None:
            self.copy.fetch(entries, verify=True)
        for path, entry in self._whole_files(entries):
            if sha256_file(path) != entry["sha256"]:
                raise InputError(
                    f"{path}: its sha256 is not the manifest's; the file is damaged, make the {self.kind} again, "
                    "or copy it again"
                )

    def _entries(self, only: Collection[str] | None) -> list[Mapping[str, Any]]:
        """Manifest entries of all files, or of those below some folders."""
        return [e for e in self.manifest["files"] if only is None or e["path"].partition("/")[0] in only]

    def _whole_files(self, entries: Collection[Mapping[str, Any]]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """Path and entry of each file, once its size is checked."""
        for entry in entries:
            path = self.folder / entry["path"]
            size = path.stat().st_size if path.is_file() else -1
            if size != entry["bytes"]:
                found = f"{size} bytes" if size >= 0 else "missing"
                raise InputError(
                    f"{path}: {found}, the manifest says {entry['bytes']} bytes; make the {self.kind} again, "
                    "or copy it again"
                )
            yield path, entry
