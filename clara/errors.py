"""Errors that a user can fix."""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable

_UNWRITABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
_INTERRUPTED = 130
_PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s@]*@")


class InputError(ValueError):
    """Bad input. The message says where (file, row or field), the value, what was expected and what to do.

    Its text is one line, even if names or values that it quotes have several, and shows no password of a URL.
    """

    def __str__(self) -> str:
        return _PASSWORD.sub(r"\1:***@", re.sub(r"\s*[\r\n]+\s*", " ", super().__str__()))


class UnavailableError(InputError):
    """What is needed does not answer now; the same may succeed later."""


def command_line(main: Callable[[list[str]], int]) -> None:
    """Run `main` on the process's arguments and exit.

    An `InputError`, or a place that the operating system refuses or that is full, becomes one line and exit status 2;
    Ctrl-C a line and 130.

    Set `CLARA_TRACEBACK=1` to see the whole stack instead.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    if not sys.stderr.isatty():
        # A library's bar leaves thousands of carriage returns in a log. Both are read when that library is imported.
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
            os.environ.setdefault(name, "1")
    # FAISS reports which build of its library it tries, as if the others were missing.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        status = main(sys.argv[1:])
    except (InputError, OSError, KeyboardInterrupt) as error:
        message = explained(error)
        if message is None or os.environ.get("CLARA_TRACEBACK"):
            raise
        print(message, file=sys.stderr)
        status = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 2
    sys.exit(status)


def explained(error: BaseException) -> str | None:
    """Text for an error that the user can fix; None for an error of ours, whose stack trace is wanted."""
    if isinstance(error, InputError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command resumes from what is finished"
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return (
            f"error: {error.filename or 'output'}: {error.strerror}; choose a place that you may write to, "
            "with room, and run the command again"
        )
    return None
