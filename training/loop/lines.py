"""Lines that a run appends to its files, one JSON object each: figures by step, and others like them."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clara.errors import InputError

logger = logging.getLogger(__name__)


class Lines:
    """Appends to a file; a line without room on disk is written later, as a full disk must not end training."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[bytes] = []
        self._warned = False

    def add(self, values: Mapping[str, Any]) -> None:
        """One more line."""
        self._waiting.append(json.dumps(values).encode() + b"\n")
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                logger.warning(
                    "%s: cannot be written (%s); what belongs there is kept until there is room",
                    self._path,
                    error.strerror,
                )
            self._warned = True

    def finish(self) -> None:
        """Write what is kept.

        Raises:
            InputError: there is still no room for it.
        """
        try:
            self._write()
        except OSError as error:
            raise InputError(
                f"{self._path}: {len(self._waiting)} lines cannot be written ({error.strerror}); make room, and run "
                "the same command again: it goes "
                "on from the last run state"
            ) from error

    def _write(self) -> None:
        if not self._waiting:
            return
        data = b"".join(self._waiting)
        with open(self._path, "a+b", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":  # a line that was cut short
                data = b"\n" + data
            try:
                while data:
                    data = data[stream.write(data) :]
            except OSError:
                with suppress(OSError):
                    stream.truncate(size)
                raise
        if self._warned:
            logger.info("%s: written again, with %d lines that were kept", self._path, len(self._waiting) - 1)
        self._waiting, self._warned = [], False


def whole_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of the lines; one that was cut short by a kill or a full disk is left out."""
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        yield found


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, as `whole_lines`; none where there is no file."""
    return list(whole_lines(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []


def parse(lines: Iterable[str]) -> dict[int, dict[str, float]]:
    """Figures by step, ascending. A step made again after a resume counts once, the last time."""
    return _by_step(whole_lines(lines))


def read(path: Path) -> dict[int, dict[str, float]]:
    """Figures by step of a file; none where there is no file."""
    return _by_step(lines_of(path))


def _by_step(found: Iterable[dict[str, Any]]) -> dict[int, dict[str, float]]:
    steps = {int(values.pop("step")): values for values in found}
    return dict(sorted(steps.items()))
