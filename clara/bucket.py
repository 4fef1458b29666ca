"""A folder of a bucket, through fsspec: whole objects, listings, and patience with a store that does not answer.

Two things are taken for granted of a store: an object that is written is there whole or not at all, and whoever lists sees what was written.
"""

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from clara.errors import InputError
from clara.storage import StorageError, Stored

PATIENCE = "CLARA_STORAGE_PATIENCE_SECONDS"
_PATIENCE_SECONDS = 300.0
_LONGEST_PAUSE_SECONDS = 15.0
_TOLD_SECONDS = 30.0
_SILENT_SECONDS = 8.0
_EXTRAS = {"s3": "aws", "s3a": "aws", "gs": "gcp", "gcs": "gcp"}
_CLIENTS = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "requests", "urllib3"}
_LOST_FOR_GOOD = {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
T = TypeVar("T")
_log = logging.getLogger(__name__)


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path there.

    Raises:
        InputError: its kind is not known, or the package for it is not installed.
    """
    # Plain objects are all that is needed; the other interface asks an endpoint of its own, which emulators and proxies have not.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    kind = url.partition("://")[0]
    options: dict[str, Any] = {"use_listings_cache": False} if kind in _EXTRAS else {}
    if kind in ("gs", "gcs") and os.environ.get("STORAGE_EMULATOR_HOST"):
        options["token"] = "anon"
    try:
        found, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = f"pip install 'clara-rag[{_EXTRAS[kind]}]'" if kind in _EXTRAS else str(error)
        raise InputError(f"{url}: the package for {kind}:// is not installed; {extra}") from error
    except ValueError as error:
        raise InputError(
            f"{url}: {error}; give a local path, or a URL that fsspec knows, as s3://BUCKET/PATH or gs://BUCKET/PATH"
        ) from error
    for client in ("s3fs", "gcsfs"):  # they tell of every try that failed, with a stack
        logging.getLogger(client).setLevel(logging.CRITICAL)
    return found, path.rstrip("/")


def passing(error: BaseException) -> bool:
    """Whether an error may go by itself: the store is away or overloaded, and not that it refuses."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    origin = type(error).__module__.partition(".")[0]
    if origin in _CLIENTS:
        code = getattr(error, "code", None) or getattr(error, "status", None)
        refused = str(code).isdigit() and 400 <= int(str(code)) < 500 and str(code) not in ("408", "429")
        return not refused and "Credentials" not in type(error).__name__ and "ParamValidation" not in type(error).__name__
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


def require_credentials(url: str) -> None:
    """Refuse a URL of S3 for whose store this machine has no credentials: Beam's client takes that for an outage, and tries on and on.

    Raises:
        InputError: there are none, or the profile that is asked for is unknown.
    """
    if url.partition("://")[0] not in ("s3", "s3a"):
        return
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        return  # what is to be installed is said by whoever opens the URL
    logging.getLogger("botocore.credentials").setLevel(logging.WARNING)  # it tells where it found some, each time
    try:
        found, why = Session().get_credentials(), "no credentials for S3 on this machine"
    except BotoCoreError as error:
        found, why = None, str(error)
    if found is None:
        raise InputError(
            f"{url}: {why}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of ~/.aws/credentials"
        )


def _unanswered(where: str, seconds: float, said: str) -> StorageError:
    return StorageError(
        f"{where}: the store has not answered for {seconds:.0f} s ({said}); run the same command again when it does, what is finished "
        f"is kept, or wait longer with {PATIENCE}"
    )


def within_patience(where: str, call: Callable[[], T]) -> T:
    """What a call to a store gives, or raises; one that only waits is told of after seconds, and left to itself once patience ends.

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
                    f"{where}: the store refuses ({said}); mend the URL, the credentials or the rights, and run again"
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


def url_glob(pattern: str) -> list[str]:
    """The URLs of the objects that a pattern names, in order."""
    system, path = file_system(pattern)
    kind = pattern.partition("://")[0]
    return [f"{kind}://{name.lstrip('/')}" for name in sorted(patiently(pattern, lambda: system.glob(path)))]


def _tag(info: Mapping[str, Any]) -> str:
    """What changes when an object is written with other bytes."""
    for name in ("md5Hash", "ETag", "etag", "generation", "last_modified", "LastModified", "mtime", "created"):
        if info.get(name):
            return str(info[name]).strip('"')
    return ""


class Bucket:
    """A folder of a store that fsspec knows. See `Folder`."""

    def __init__(self, url: str, *, patient: bool = True) -> None:
        self.url, self._patient = url.rstrip("/"), patient
        self.system, self.root = file_system(self.url)

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _patiently(self, name: str, call: Callable[[], T]) -> T:
        return patiently(f"{self.url}/{name}", call) if self._patient else call()

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes | None:
        """See `Folder`; or only the bytes from `begin` to `end`."""
        try:
            found: bytes = self._patiently(name, lambda: self.system.cat_file(self._path(name), start=begin, end=end))
        except FileNotFoundError:
            return None
        except StorageError:
            there = self.stored(name) if begin else None
            if there is None or there.bytes > (begin or 0):
                raise
            return b""  # behind its end, where stores give an error
        return found

    def stored(self, name: str) -> Stored | None:
        """What the store says of one object; None where there is none."""
        try:
            info = self._patiently(name, lambda: self.system.info(self._path(name)))
        except FileNotFoundError:
            return None
        return Stored(int(info["size"]), _tag(info)) if info["type"] == "file" else None

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        self._written(name, lambda: self.system.pipe_file(self._path(name), data))

    def put(self, name: str, file: Path) -> None:
        """Write an object from a file of this machine."""
        self._written(name, lambda: self.system.put_file(str(file), self._path(name)))

    def copy(self, source: "Bucket", name: str) -> None:
        """Have an object of another folder of the same store too; the store copies it, nothing passes through here."""
        self._written(name, lambda: self.system.cp_file(source._path(name), self._path(name)))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object only where there is none, which the store decides. False where there was one."""
        try:
            self._written(name, lambda: self.system.pipe_file(self._path(name), data, mode="create"))
        except FileExistsError:
            # An answer may have been lost on the way, and the call was made again.
            return self.read(name) == data
        return True

    def _written(self, name: str, call: Callable[[], Any]) -> None:
        try:
            self._patiently(name, call)
        except FileNotFoundError as error:
            raise StorageError(f"{self.url}/{name}: cannot be written ({error}); make the bucket, or correct the URL") from error

    def remove(self, names: Iterable[str]) -> None:
        """See `Folder`."""
        for name in names:
            try:
                self._patiently(name, lambda name=name: self.system.rm_file(self._path(name)))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def files(self, below: str = "") -> dict[str, Stored]:
        """See `Folder`."""
        try:
            found = self._patiently(below, lambda: self.system.find(self._path(below), detail=True))
        except FileNotFoundError:
            return {}
        start = len(self.root) + 1
        return {name[start:]: Stored(int(info["size"]), _tag(info)) for name, info in found.items() if name[start:]}

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """See `Folder`."""
        found, wanted = self.files(), set(names)
        return {name: stored.bytes for name, stored in found.items() if name in wanted}

    def tags(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """See `Folder`.

        Raises:
            StorageError: a file is not there as it was written.
        """
        wanted = {entry["path"]: entry["bytes"] for entry in entries}
        found = self._beside(wanted)
        for path, size in wanted.items():
            if path not in found or found[path].bytes != size:
                there = found[path].bytes if path in found else "no"
                raise StorageError(f"{self.url}/{path}: {there} bytes arrived of {size}; let nothing else write there, and run again")
        return {path: found[path].tag for path in wanted}

    def unchanged(self, entries: Iterable[Mapping[str, Any]], tags: Mapping[str, str]) -> bool:
        """See `Folder`."""
        wanted = {entry["path"]: Stored(entry["bytes"], tags.get(entry["path"], "")) for entry in entries}
        found = self._beside(wanted)
        return all(stored.tag and found.get(path) == stored for path, stored in wanted.items())

    def _beside(self, paths: Iterable[str]) -> dict[str, Stored]:
        """What is in the folders of files."""
        found: dict[str, Stored] = {}
        for below in {path.rpartition("/")[0] for path in paths}:
            found |= self.files(below)
        return found

    def touch(self, name: str) -> None:
        """See `Folder`."""
