"""Follows files that another process appends to, to show rank 0's log and figures in the waiting process."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class NewLines:
    """Whole lines that were appended to a file since it was last asked."""

    def __init__(self, path: Path, *, from_start: bool) -> None:
        """`from_start`: what is there already counts as new."""
        self._path = path
        self._place = 0 if from_start or not path.is_file() else path.stat().st_size

    def read(self) -> list[str]:
        """The new lines; a line without its end waits until it is whole."""
        if not self._path.is_file():
            return []
        with open(self._path, "rb") as stream:
            stream.seek(self._place)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


@contextmanager
def following(
    path: Path, show: Callable[[Sequence[str]], None], *, from_start: bool = False, every_seconds: float = 1.0
) -> Iterator[None]:
    """Inside, pass each new whole line of a file to `show`, in a thread; what is left is handed over at the end."""
    lines, stop = NewLines(path, from_start=from_start), threading.Event()

    def watch() -> None:
        while not stop.wait(every_seconds):
            if found := lines.read():
                show(found)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if found := lines.read():
            show(found)
