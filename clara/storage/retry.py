"""How long a store that does not answer is asked again."""

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from clara.errors import InputError
from clara.storage.base import StorageError

_log = logging.getLogger(__name__)
PATIENCE = "CLARA_STORAGE_PATIENCE_SECONDS"
_PATIENCE_SECONDS = 300.0
_LONGEST_PAUSE_SECONDS = 15.0
_TOLD_SECONDS = 30.0
_SILENT_SECONDS = 8.0
_CLIENTS = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "requests", "urllib3"}
_LOST_FOR_GOOD = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EMSGSIZE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
}
T = TypeVar("T")


def passing(error: BaseException) -> bool:
    """Whether an error may go by itself: the store is away or overloaded, and not that it refuses."""
    if isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError | NotADirectoryError
    ):
        return False
    origin = type(error).__module__.partition(".")[0]
    if origin in _CLIENTS:
        code = getattr(error, "code", None) or getattr(error, "status", None)
        refused = str(code).isdigit() and 400 <= int(str(code)) < 500 and str(code) not in ("408", "429")
        return (
            not refused and "Credentials" not in type(error).__name__ and "ParamValidation" not in type(error).__name__
        )
    if isinstance(error, OSError):
        return error.errno not in _LOST_FOR_GOOD and not str(error).startswith("Forbidden")
    return isinstance(error, TimeoutError)


class _Patience:
    """How long a store is waited for. Once used up, no call waits again until one has been answered."""

    used_up = False
    answered = False  # ever, by whichever store

    def seconds(self) -> float:
        text = os.environ.get(PATIENCE, "")
        try:
            seconds = float(text or _PATIENCE_SECONDS)
        except ValueError as error:
            raise InputError(f"{PATIENCE}={text!r}: expected seconds, as 300") from error
        return 0.0 if self.used_up else seconds


_patience = _Patience()


def given_up() -> bool:
    """Whether the store was waited for in vain, and has not answered since: what is only tidying up need not try."""
    return _patience.used_up


def _unanswered(where: str, seconds: float, said: str) -> StorageError:
    return StorageError(
        f"{where}: the store has not answered for {seconds:.0f} s ({said}); run the same command again when it does, "
        "what is finished "
        f"is kept, or wait longer with {PATIENCE}"
    )


def within_patience(where: str, call: Callable[[], T]) -> T:
    """Result of a call to a store, in a thread that is abandoned once the store has been silent for too long.

    Raises:
        StorageError: it has neither returned nor raised for as long as a store is waited for.
    """
    answers: list[T] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def attempt() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # raised again below, in the thread that asked
            errors.append(error)
        finally:
            ended.set()

    seconds = _patience.seconds() or _SILENT_SECONDS
    threading.Thread(target=attempt, name="store", daemon=True).start()
    silent = min(seconds, _SILENT_SECONDS)
    if not ended.wait(silent) and seconds > silent:
        _log.warning("%s: the store does not answer; waiting on for %.0f s (%s)", where, seconds - silent, PATIENCE)
        ended.wait(seconds - silent)
    if errors:
        raise errors[0]
    if not answers:
        _patience.used_up = True
        raise _unanswered(where, seconds, "no connection, or no reply")
    return answers[0]


def patiently(where: str, call: Callable[[], T]) -> T:
    """Call a store until it answers.

    Raises:
        OSError: what the store says of itself: not there, there already.
        StorageError: it refuses, or has not answered for as long as it is waited for.
    """
    began, pause, told = time.monotonic(), 0.25, -_TOLD_SECONDS
    while True:
        try:
            # A client may try for many minutes in one call: that a store was never reached is not left to it.
            answer = call() if _patience.answered else within_patience(where, call)
        except (FileNotFoundError, FileExistsError):
            _patience.used_up, _patience.answered = False, True
            raise
        except Exception as error:  # each store's client has errors of its own
            said = f"{type(error).__name__}: {error}"[:300]
            if not passing(error):
                if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
                    raise
                raise StorageError(
                    f"{where}: the store refuses ({said}); fix the URL, the credentials or the rights, and run again"
                ) from error
            waited, patience = time.monotonic() - began, _patience.seconds()
            if waited + pause > patience:
                _patience.used_up = True
                raise _unanswered(where, waited, said) from error
            if waited - told >= _TOLD_SECONDS:
                _log.warning("%s: the store does not answer (%s); trying on for %.0f s", where, said, patience - waited)
                told = waited
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        else:
            _patience.used_up, _patience.answered = False, True
            return answer
