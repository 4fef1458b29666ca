"""One job at a time in one place: a lock of the operating system on a directory, a lease on a URL.

A lease is an object that its holder renews. What it rests on is the store's conditional write: of two that create one
object, one is told no.

* A second job refuses while the holder renews, and for `CLARA_LEASE_SECONDS` (120) after; a holder that died on this
  very machine is known at once.
* Then it may take the place. It first watches for longer than a holder needs to renew, so that clocks need not agree.
* Whoever takes it creates the next number, and a higher number ends every lower one: a job that was held up, by a
  sleeping machine say, finds that when it wakes, ends, and completes nothing. Between its last look and its next write
  lies a moment in which it may still put a file over one of the new holder's. Of an equal job such a file is the same,
  bit for bit; of another job readers refuse it, as its sha256 is not the manifest's.
"""

import _thread
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clara.errors import InputError
from clara.storage.base import StorageError
from clara.storage.bucket import Bucket
from clara.storage.paths import Name, is_url
from clara.storage.retry import given_up

LOCK = ".lock"
SECONDS = "CLARA_LEASE_SECONDS"
_LEASE_SECONDS = 120.0
_RENEWALS = 8  # in that time
_HELD: set[str] = set()  # owners of this process' leases


@contextmanager
def locked(directory: Name, flag: str = "--output") -> Iterator["Lease | None"]:
    """Hold a place for one job at a time, as it is named by `flag`. Gives the lease of a URL.

    Raises:
        InputError: another job holds it, or it can't be written.
    """
    if is_url(directory):
        with leased(os.fspath(directory)) as lease:
            yield lease
    else:
        with _locked_directory(Path(directory), flag):
            yield None


@contextmanager
def _locked_directory(directory: Path, flag: str) -> Iterator[None]:
    """The operating system's lock on an open file, which ends with its process however that ends."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stream = open(directory / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (closed below, outside of this try)
    except OSError as error:
        raise InputError(
            f"{flag} {directory}: cannot be written ({error.strerror or error}); choose a directory that you may "
            "write to"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise InputError(
                f"{flag} {directory}: {holder} is writing there; wait for it, or choose another directory"
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)  # the file stays: removing it would let two jobs lock two files of one name


# --- a lease ---------------------------------------------------------------------------------------------------------


def lease_seconds() -> float:
    """How long a holder that is not heard of keeps its place.

    Raises:
        InputError: the environment says no number.
    """
    text = os.environ.get(SECONDS, "")
    try:
        seconds = float(text or _LEASE_SECONDS)
    except ValueError as error:
        raise InputError(f"{SECONDS}={text!r}: expected seconds, as 120") from error
    if seconds <= 0:
        raise InputError(f"{SECONDS}={text!r}: expected more than 0 seconds")
    return seconds


def _process(pid: int) -> dict[str, Any] | None:
    """Identifies a process: the machine's boot, process namespace, number, start time; None if it does not run."""
    try:
        began = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"boot": boot, "space": os.readlink(f"/proc/{os.getpid()}/ns/pid"), "pid": pid, "began": began}
    except (OSError, IndexError):
        return None


def _dead(record: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended, or this one, which holds it no more."""
    theirs, own = record.get("process"), _process(os.getpid())
    if not theirs or not own or (theirs["boot"], theirs["space"]) != (own["boot"], own["space"]):
        return False
    return record["owner"] not in _HELD if theirs == own else _process(theirs["pid"]) != theirs


@dataclass(frozen=True)
class Lease:
    """A place that this job holds; travels to its workers.

    Attributes:
        url: the place.
        number: of this lease, higher than those before.
        owner: that nobody else has.
        who: holds it, for messages.
    """

    url: str
    number: int
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    who: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")

    @property
    def name(self) -> str:
        """Of its object."""
        return f"{LOCK}/{self.number:08d}"

    def record(self, *, released: bool = False) -> bytes:
        """What its object says now."""
        said = {
            "owner": self.owner,
            "who": self.who,
            "time": time.time(),
            "process": _process(os.getpid()),
            "released": released,
        }
        return json.dumps(said).encode()

    def check(self) -> None:
        """Make sure that the place is still this job's.

        Raises:
            InputError: another job has taken it.
        """
        bucket = Bucket(self.url)
        highest = max(bucket.files(LOCK), default="")
        said = json.loads(bucket.read(highest) or b"{}") if highest else {}
        if highest != self.name or said.get("owner") != self.owner:
            raise InputError(
                f"--output {self.url}: {said.get('who', 'another job')} has taken the place, as this job was not "
                "heard of for "
                f"{lease_seconds():.0f} s; let that one end, or choose another place"
            )


def acquire(url: str) -> Lease:
    """Take a place.

    Raises:
        InputError: somebody holds it, or the store knows no conditional write.
    """
    bucket = Bucket(url)
    while True:
        names = sorted(bucket.files(LOCK))
        if names:
            _refuse_or_wait(bucket, names[-1])
        lease = Lease(url, 1 + (int(names[-1].rpartition("/")[2]) if names else 0))
        _HELD.add(lease.owner)
        if bucket.create(lease.name, lease.record()):
            break
    if bucket.create(lease.name, lease.record()):
        bucket.remove([lease.name])
        raise InputError(
            f"--output {url}: this store lets a second job write over the first one's lock (it does not know "
            "`If-None-Match` or "
            "`ifGenerationMatch`); choose a store that does, or a directory"
        )
    bucket.remove(names)
    return lease


def _refuse_or_wait(bucket: Bucket, name: str) -> None:
    """Return once nobody holds a place, by its highest lease.

    Raises:
        InputError: somebody does.
    """
    said = bucket.read(name)
    record = json.loads(said) if said else {"released": True}
    if record["released"] or _dead(record):
        return
    age, longest = time.time() - record["time"], lease_seconds()
    if age > longest:
        time.sleep(3 * longest / _RENEWALS)
        if bucket.read(name) == said:
            return
        age = 0.0
    raise InputError(
        f"--output {bucket}: {record['who']} is writing there (heard of {max(age, 0.0):.0f} s ago); wait for it, or "
        "choose another place. If it has "
        f"died, the place is free {longest:.0f} s after it was last heard of"
    )


@contextmanager
def leased(url: str) -> Iterator[Lease]:
    """Hold a place of a store, and renew the lease until the end.

    Raises:
        InputError: see `acquire`; or another job has taken the place meanwhile.
    """
    lease = acquire(url)
    ended, lost = threading.Event(), threading.Event()

    def renew() -> None:
        bucket = Bucket(url, patient=False)
        while not ended.wait(lease_seconds() / _RENEWALS):
            try:
                if max(bucket.files(LOCK), default="") != lease.name:
                    lost.set()
                    _thread.interrupt_main()
                    return
                bucket.write(lease.name, lease.record())
            except Exception:  # a store that is away: tried again, and nobody else can renew meanwhile either
                continue

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    except KeyboardInterrupt:
        if lost.is_set():
            lease.check()
        raise
    finally:
        ended.set()
        thread.join()
        _HELD.discard(lease.owner)
        if not lost.is_set():
            _release(lease)


def _release(lease: Lease) -> None:
    if given_up():
        return  # it runs out
    try:
        Bucket(lease.url, patient=False).write(lease.name, lease.record(released=True))
    except (StorageError, OSError):
        return  # it runs out
