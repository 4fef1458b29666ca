"""Retries of calls to a store that does not answer."""

import errno
import logging
import multiprocessing.pool
import os
from collections.abc import Callable
from typing import TypeVar

import tenacity

from clara.errors import InputError
from clara.storage.base import StorageError

_log = logging.getLogger(__name__)
PATIENCE = "CLARA_STORAGE_PATIENCE_SECONDS"
_PATIENCE_SECONDS = 300.0
_REQUEST_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 15.0
_CLIENTS = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "requests", "urllib3"}
_PERMANENT = {
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


def is_transient(error: BaseException) -> bool:
    """Whether a later attempt may succeed: the store is unreachable or overloaded, but does not refuse the call."""
    if isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError | NotADirectoryError
    ):
        return False
    if _is_of_a_client(error):
        code = getattr(error, "code", None) or getattr(error, "status", None)
        refused = str(code).isdigit() and 400 <= int(str(code)) < 500 and str(code) not in ("408", "429")
        return (
            not refused and "Credentials" not in type(error).__name__ and "ParamValidation" not in type(error).__name__
        )
    if isinstance(error, OSError):
        return error.errno not in _PERMANENT and not str(error).startswith("Forbidden")
    return False


def _is_of_a_client(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _CLIENTS


def patience_seconds() -> float:
    """How long a store is retried before a command fails.

    Raises:
        InputError: the value of the environment variable is no number.
    """
    text = os.environ.get(PATIENCE, "")
    try:
        return float(text or _PATIENCE_SECONDS)
    except ValueError as error:
        raise InputError(f"{PATIENCE}={text!r}: expected seconds, as 300") from error


def request_seconds() -> float:
    """Time-out of one request: to connect, and between two bytes of the reply."""
    return min(_REQUEST_SECONDS, patience_seconds()) or _REQUEST_SECONDS


def _warn(where: str, seconds: float, reason: object) -> None:
    _log.warning("%s: the store does not answer; retrying for %.0f s (%s; %s)", where, seconds, PATIENCE, reason)


def _unreachable(where: str, seconds: float, reason: object) -> StorageError:
    return StorageError(
        f"{where}: the store has not answered for {seconds:.0f} s ({reason}); run the same command again when it does, "
        f"finished files are kept, or wait longer with {PATIENCE}"
    )


def _summary(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def with_retries(where: str, call: Callable[[], T]) -> T:
    """Call a store until it answers; `where` names the URL in messages.

    Raises:
        OSError: the store's answer is that the file does not exist, or exists already.
        StorageError: the store refuses, or has not answered for `patience_seconds`.
    """
    seconds = patience_seconds()

    def report(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome:
            _warn(where, seconds, _summary(state.outcome.exception()))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=_LONGEST_PAUSE_SECONDS),
        stop=tenacity.stop_after_delay(seconds),
        before_sleep=report,
    )
    try:
        return retrying(call)
    except (FileNotFoundError, FileExistsError):
        raise
    except tenacity.RetryError as error:
        reason = error.last_attempt.exception()
        raise _unreachable(where, seconds, _summary(reason)) from reason
    except Exception as error:
        if not isinstance(error, OSError) and not _is_of_a_client(error):
            raise
        raise StorageError(
            f"{where}: the store refuses ({_summary(error)}); fix the URL, the credentials or the rights, and run again"
        ) from error


def with_deadline(where: str, call: Callable[[], T]) -> T:
    """Call a client without time-outs in a thread, which is abandoned after `patience_seconds`.

    Raises:
        StorageError: the client has neither returned nor raised by then.
    """
    seconds = patience_seconds() or _REQUEST_SECONDS
    with multiprocessing.pool.ThreadPool(1) as pool:
        result = pool.apply_async(call)
        result.wait(request_seconds())
        if not result.ready():
            _warn(where, seconds, "no connection, or no reply")
            result.wait(seconds - request_seconds())
        if not result.ready():
            raise _unreachable(where, seconds, "no connection, or no reply")
        return result.get()
