"""Progress of long work: a bar on a terminal; in a file or a CI log one plain line every half minute."""

import sys
import time
from contextlib import suppress

from tqdm import tqdm
from tqdm.utils import ObjectWrapper

LINE_SECONDS = 30.0
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Output(ObjectWrapper):
    """Standard error, whose own faults do not end the work: a log file on a full disk, a terminal that has gone."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._wrapped.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._wrapped.flush()


class Progress(tqdm):
    """tqdm on standard error, which writes plain lines if that is not a terminal."""

    def __init__(
        self, total: int, desc: str, unit: str, *, initial: int = 0, unit_scale: bool = False, shown: bool = True
    ) -> None:
        """Show progress until `close`.

        Args:
            total: units of the whole work.
            desc: what is being done.
            unit: plural, with a space before it (" rows").
            initial: units done before.
            unit_scale: shorten large numbers (1.2M).
            shown: False shows nothing.
        """
        self._terminal = sys.stderr.isatty()
        self._next_line = time.monotonic() + LINE_SECONDS
        super().__init__(
            total=total,
            initial=initial,
            desc=desc,
            unit=unit,
            unit_scale=unit_scale,
            disable=not shown,
            dynamic_ncols=self._terminal,
            bar_format=None if self._terminal else _LINE,
            file=_Output(sys.stderr),
            miniters=1,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar; without a terminal write a line when the next one is due, and one at the end."""
        if self._terminal:
            return bool(super().display(msg, pos))
        closing = self.disable  # `close` displays the last state, then ends the line
        if closing or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self.fp.write(f"{self}" if closing else f"{self}\n")
            self.fp.flush()
        return True
