"""Errors that a user can mend."""

import logging
import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input. The message says where (file, row or field), the value, what was expected and what to do."""


def command_line(main: Callable[[list[str]], int]) -> None:
    """Run `main` on the process's arguments and exit: an `InputError` becomes one line and exit status 2.

    Set `CLARA_TRACEBACK=1` to see the whole stack instead.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    try:
        status = main(sys.argv[1:])
    except InputError as error:
        if os.environ.get("CLARA_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
