"""Progress on a terminal and in a log."""

import errno
import io
import subprocess
import sys
import time

import pytest

from clara import progress
from clara.progress import Progress


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, in a list of one."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(time, "time", lambda: 1000.0 + seconds[0])
    return seconds


def shown(monkeypatch: pytest.MonkeyPatch, clock: list[float], *, terminal: bool, **given: bool) -> str:
    """What is written about 100 steps of a second each."""
    stream = Stream(terminal)
    monkeypatch.setattr("sys.stderr", stream)
    with Progress(total=100, desc="compress", unit=" rows", **given) as bar:
        for _ in range(100):
            clock[0] += 1.0
            bar.update()
            bar.refresh()
    return stream.getvalue()


def test_a_log_has_a_line_every_half_minute_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    text = shown(monkeypatch, clock, terminal=False)
    assert "\r" not in text
    lines = text.splitlines()
    assert [line.partition(" [")[0] for line in lines] == [f"compress: {n} of 100 rows" for n in (30, 60, 90, 100)]
    assert text.endswith("\n")
    assert "\n\n" not in text


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    text = shown(monkeypatch, clock, terminal=True)
    assert text.count("\r") >= 100
    assert "100%|" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_not_shown_writes_nothing(terminal: bool, monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    assert shown(monkeypatch, clock, terminal=terminal, shown=False) == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_without_room_does_not_end_the_work(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    class Full(Stream):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"{__name__}.Stream", Full)
    assert shown(monkeypatch, clock, terminal=terminal) == ""


def test_no_bar_of_a_library_in_a_log() -> None:
    program = """
from clara.errors import command_line
def main(arguments):
    from tqdm.auto import tqdm
    from transformers.utils import logging
    from clara.progress import Progress
    for _ in tqdm(range(3)): pass
    for _ in logging.tqdm(range(3)): pass
    with Progress(3, "compress", " rows") as bar: bar.update(3)
    return 0
command_line(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("compress: 3 of 3 rows")
    assert done.stderr.count("\n") == 1
