"""Newer versions of the MEMORY that is served, and the INDEX over each.

A version is newer if its manifest names the served one as its parent, directly or through others: an update, a
compaction. One whose vectors another compressor made (a refresh in training) is not of the same model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.storage.manifest import MANIFEST, hash_of_manifest, read_manifest
from clara.storage.paths import is_url


@dataclass(frozen=True)
class _Found:
    """What a manifest says of its artefact; `memory`: hash of the MEMORY that an INDEX is over."""

    path: str
    kind: str
    hash: str
    parent: str
    fingerprint: str
    memory: str

    @classmethod
    def of(cls, path: str, manifest: Mapping[str, Any]) -> "_Found":
        memory = str(manifest.get("memory") or "")
        kind, parent, fingerprint = manifest["kind"], manifest.get("parent") or "", manifest.get("fingerprint") or ""
        return cls(path, kind, hash_of_manifest(manifest), parent, fingerprint, memory)


@dataclass
class Newest:
    """Looks for versions in the folders of the MEMORY and the INDEX that are served.

    Attributes:
        memory: path of the MEMORY in use; of a URL there are no newer versions.
        index: path of the INDEX in use; empty: none.
    """

    memory: str
    index: str = ""
    _read: dict[Path, tuple[int, _Found]] = field(default_factory=dict)
    _current: _Found | None = None

    def look(self) -> tuple[str, str]:
        """MEMORY and INDEX to serve now: the newest pair, which is in use from then on.

        A MEMORY without its INDEX waits until that is built.

        Raises:
            InputError: the MEMORY in use was unfinished when it was first looked at.
        """
        if is_url(self.memory) or is_url(self.index):
            return self.memory, self.index
        if self._current is None:
            self._current = _Found.of(self.memory, read_manifest(self.memory, "MEMORY"))
        known = [found for found in self._beside(self.memory) if found.kind == "MEMORY"]
        indexes = [found for found in self._beside(self.index) if found.kind == "INDEX"] if self.index else []
        for newer in _descendants(self._current, known):
            over = [found.path for found in indexes if found.memory == newer.hash]
            if newer.fingerprint == self._current.fingerprint and (over or not self.index):
                self.memory, self.index, self._current = newer.path, max(over, default=""), newer
                break
        return self.memory, self.index

    def _beside(self, path: str) -> Iterator[_Found]:
        """Finished artefacts in the same folder; a manifest is read once."""
        for file in sorted(Path(path).absolute().parent.glob(f"*/{MANIFEST}")):
            try:
                changed = file.stat().st_mtime_ns
                if self._read.get(file, (0, None))[0] != changed:
                    self._read[file] = changed, _Found.of(str(file.parent), read_manifest(file.parent))
            except (InputError, OSError):
                continue  # deleted meanwhile, or none of ours
            yield self._read[file][1]


def _descendants(of: _Found, known: list[_Found]) -> Iterator[_Found]:
    """Those whose parents lead to a version, the farthest first."""
    generations, parents = list[list[_Found]](), {of.hash}
    while children := [found for found in known if found.parent in parents]:
        generations.append(children)
        parents = {found.hash for found in children} - {found.hash for old in generations[:-1] for found in old}
    for children in reversed(generations):
        yield from sorted(children, key=lambda found: found.path, reverse=True)
