"""A folder of a bucket, through fsspec: whole objects, listings, with retries.

A store must write an object whole or not at all, and list what was written.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.storage.base import StorageError, Stored
from clara.storage.retry import T, request_seconds, with_retries

_EXTRAS = {"s3": "aws", "s3a": "aws", "gs": "gcp", "gcs": "gcp"}
_log = logging.getLogger(__name__)


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path there.

    Raises:
        InputError: its kind is not known, or the package for it is not installed.
    """
    # Plain objects suffice; the other interface needs an endpoint that emulators and proxies do not have.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    kind = url.partition("://")[0]
    options: dict[str, Any] = {"use_listings_cache": False} if kind in _EXTRAS else {}
    seconds = request_seconds()
    if _EXTRAS.get(kind) == "aws":
        once = {"total_max_attempts": 1}
        options["config_kwargs"] = {"connect_timeout": seconds, "read_timeout": seconds, "retries": once}
    if _EXTRAS.get(kind) == "gcp":
        import aiohttp

        options["requests_timeout"] = aiohttp.ClientTimeout(sock_connect=seconds, sock_read=seconds)
        if os.environ.get("STORAGE_EMULATOR_HOST"):
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
    if kind in _EXTRAS:  # retries are those of `with_retries`
        found.retries = 1
    if _EXTRAS.get(kind) == "gcp":
        found._request = functools.partial(type(found)._request.__wrapped__, found)  # its six attempts take 30 s
    for client in ("s3fs", "gcsfs"):  # they log every failed attempt with a stack trace
        logging.getLogger(client).setLevel(logging.CRITICAL)
    return found, path.rstrip("/")


def require_credentials(url: str) -> None:
    """Refuse a URL of S3 without credentials on this machine: Beam's client would retry endlessly, as in an outage.

    Raises:
        InputError: there are none, or the profile that is asked for is unknown.
    """
    if url.partition("://")[0] not in ("s3", "s3a"):
        return
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        return  # `file_system` says what to install
    logging.getLogger("botocore.credentials").setLevel(logging.WARNING)  # it logs where it found them, each time
    try:
        found, why = Session().get_credentials(), "no credentials for S3 on this machine"
    except BotoCoreError as error:
        found, why = None, str(error)
    if found is None:
        raise InputError(
            f"{url}: {why}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE to a profile of ~/.aws/credentials"
        )


def url_glob(pattern: str) -> list[str]:
    """The URLs of the objects that a pattern names, in order; folders and their markers are none."""
    system, path = file_system(pattern)
    kind = pattern.partition("://")[0]
    found = with_retries(pattern, lambda: system.glob(path, detail=True))
    return [f"{kind}://{name.lstrip('/')}" for name in sorted(found) if found[name].get("type") != "directory"]


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

    def _call(self, name: str, call: Callable[[], T]) -> T:
        return with_retries(f"{self.url}/{name}", call) if self._patient else call()

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes | None:
        """See `Folder`; or only the bytes from `begin` to `end`."""
        try:
            found: bytes = self._call(name, lambda: self.system.cat_file(self._path(name), start=begin, end=end))
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
            info = self._call(name, lambda: self.system.info(self._path(name)))
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
            self._call(name, call)
        except FileNotFoundError as error:
            raise StorageError(
                f"{self.url}/{name}: cannot be written ({error}); make the bucket, or correct the URL"
            ) from error

    def remove(self, names: Iterable[str]) -> None:
        """See `Folder`."""
        for name in names:
            try:
                self._call(name, lambda name=name: self.system.rm_file(self._path(name)))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def files(self, below: str = "") -> dict[str, Stored]:
        """See `Folder`."""
        try:
            found = self._call(below, lambda: self.system.find(self._path(below), detail=True))
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
                raise StorageError(
                    f"{self.url}/{path}: {there} bytes arrived of {size}; let nothing else write there, and run again"
                )
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
