"""One job at a time per output: a lock of the operating system on a directory, a lease on a URL.

A lease is an object that its holder renews. It relies on the store's conditional write: if two jobs create the same
object, one of them fails.

* A second job refuses to start while the holder renews, and for `CLARA_LEASE_SECONDS` (120) after. A holder that died
  on this machine is detected at once.
* Then the second job may acquire the lease. It first waits for longer than a renewal interval and checks that the
  lease does not change, so that clocks need not agree.
* The new holder creates the next number, and a higher number ends every lower one. A suspended job finds it when it
  resumes, and ends without completing its artefact. Between its last check and its next write it may still overwrite
  a file of the new holder. If both jobs are equal, the file is the same bit for bit; otherwise readers refuse it,
  because its sha256 differs from the manifest's.
"""

import _thread
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

from filelock import FileLock, Timeout

from clara.errors import InputError
from clara.storage.bucket import Bucket
from clara.storage.paths import Name, is_url

LOCK = ".lock"
SECONDS = "CLARA_LEASE_SECONDS"
_LEASE_SECONDS = 120.0
_RENEWALS = 8  # per lease duration
_HELD: set[str] = set()  # owners of the leases that this process holds


@contextmanager
def locked(directory: Name, flag: str = "--output") -> Iterator["Lease | None"]:
    """Lock an output, which `flag` names in messages. Yields the lease of a URL, None for a directory.

    Raises:
        InputError: another job has locked it, or it can't be written.
    """
    if is_url(directory):
        with leased(os.fspath(directory)) as lease:
            yield lease
    else:
        with _locked_directory(Path(directory), flag):
            yield None


@contextmanager
def _locked_directory(directory: Path, flag: str) -> Iterator[None]:
    """Lock a file through the operating system, which releases it when the process ends in any way."""
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.touch()
        lock = FileLock(path, timeout=0).acquire()
    except Timeout as error:
        holder = path.read_text(encoding="utf-8") or "another process"
        raise InputError(
            f"{flag} {directory}: {holder} is writing there; wait for it, or choose another directory"
        ) from error
    except OSError as error:
        raise InputError(
            f"{flag} {directory}: cannot be written ({error.strerror or error}); choose a directory that you may "
            "write to"
        ) from error
    with lock:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
        path.write_text("", encoding="utf-8")


# --- a lease ---------------------------------------------------------------------------------------------------------


def lease_seconds() -> float:
    """How long a lease is valid after its last renewal.

    Raises:
        InputError: the value of the environment variable is not a positive number.
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
    """True if the holder is a process of this machine that has ended, or this process, which has released it."""
    theirs, own = record.get("process"), _process(os.getpid())
    if not theirs or not own or (theirs["boot"], theirs["space"]) != (own["boot"], own["space"]):
        return False
    return record["owner"] not in _HELD if theirs == own else _process(theirs["pid"]) != theirs


@dataclass(frozen=True)
class Lease:
    """A lock on a URL held by this job; sent to its workers.

    Attributes:
        url: the locked URL.
        number: number of this lease, higher than all earlier ones.
        owner: unique id of the holder.
        who: name of the holder for messages.
    """

    url: str
    number: int
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    who: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")

    @property
    def name(self) -> str:
        """Name of its object."""
        return f"{LOCK}/{self.number:08d}"

    def record(self, *, released: bool = False) -> bytes:
        """The current content of its object."""
        record = {
            "owner": self.owner,
            "who": self.who,
            "time": time.time(),
            "process": _process(os.getpid()),
            "released": released,
        }
        return json.dumps(record).encode()

    def check(self) -> None:
        """Check that this job still holds the lease.

        Raises:
            InputError: another job has acquired it.
        """
        bucket = Bucket(self.url)
        highest = max(bucket.files(LOCK), default="")
        record = json.loads(bucket.read(highest) or b"{}") if highest else {}
        if highest != self.name or record.get("owner") != self.owner:
            raise InputError(
                f"--output {self.url}: {record.get('who', 'another job')} has taken the place, as this job did not "
                f"renew its lease for {lease_seconds():.0f} s; let that one end, or choose another place"
            )


def acquire(url: str) -> Lease:
    """Acquire the lease of a URL.

    Raises:
        InputError: another job holds it, or the store has no conditional writes.
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
            "`If-None-Match` or `ifGenerationMatch`); choose a store that does, or a directory"
        )
    bucket.remove(names)
    return lease


def _refuse_or_wait(bucket: Bucket, name: str) -> None:
    """Return if the highest lease is released or expired; an expired one is watched for a while first.

    Raises:
        InputError: another job holds it.
    """
    raw = bucket.read(name)
    record = json.loads(raw) if raw else {"released": True}
    if record["released"] or _dead(record):
        return
    age, longest = time.time() - record["time"], lease_seconds()
    if age > longest:
        time.sleep(3 * longest / _RENEWALS)
        if bucket.read(name) == raw:
            return
        age = 0.0
    raise InputError(
        f"--output {bucket}: {record['who']} is writing there (lease renewed {max(age, 0.0):.0f} s ago); wait for it, "
        f"or choose another place. If it has died, the place is free {longest:.0f} s after its last renewal"
    )


@contextmanager
def leased(url: str) -> Iterator[Lease]:
    """Acquire the lease of a URL, and renew it until the end.

    Raises:
        InputError: as raised by `acquire`, or another job has acquired the lease meanwhile.
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
            except Exception:  # the store does not answer: try again; no other job can renew meanwhile
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
    try:
        Bucket(lease.url, patient=False).write(lease.name, lease.record(released=True))
    except Exception:  # the store does not answer: the lease expires
        return
