"""What every store offers, and its errors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from clara.errors import InputError


class StorageError(InputError):
    """A store that did not answer, or refused."""


@dataclass(frozen=True)
class Stored:
    """What a folder says of a file: its size, and what changes with its content (empty on this machine)."""

    bytes: int
    tag: str = ""


class Folder(Protocol):
    """Files by their names relative to a folder."""

    def read(self, name: str) -> bytes | None:
        """A whole file; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, or nothing."""
        ...

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of those among some files that are there."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over."""
        ...

    def files(self, below: str = "") -> dict[str, Stored]:
        """All files in it, or in one of its folders."""
        ...

    def tags(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Tags of files that were just written, by which `unchanged` detects later writes; empty on this machine."""
        ...

    def unchanged(self, entries: Iterable[Mapping[str, Any]], tags: Mapping[str, str]) -> bool:
        """Whether files are as they were written: by sha256 on this machine, by size and tag in a bucket."""
        ...

    def touch(self, name: str) -> None:
        """Have a file count as written now, where that costs nothing."""
        ...
