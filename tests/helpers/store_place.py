"""A folder of an emulated object store for one test, and the corpus command with it."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clara.storage.artefact import read_manifest
from clara.storage.transfer import published
from tests.helpers import stores


@dataclass(frozen=True)
class Place:
    """A folder of a bucket for one test."""

    url: str
    store: stores.Store

    def __truediv__(self, name: str) -> str:
        return f"{self.url}/{name}"


def put(source: Path, url: str) -> str:
    """A finished artefact of this machine in a bucket."""
    with published(url) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return url


def command(given: str, output: str, checkpoint: str, *arguments: str) -> list[str]:
    common = ["--dtype=float32", "--num-workers=1", "--num-shards=3"]
    return ["--input", given, "--output", output, "--checkpoint", checkpoint, *common, *arguments]


def shard_hashes(memory: str | Path) -> dict[str, str]:
    files = read_manifest(memory, "MEMORY")["files"]
    return {entry["path"]: entry["sha256"] for entry in files if "shard-" in entry["path"]}


def outage(place: Place, when: Callable[[str, str], bool], seconds: float) -> None:
    """From the first request that `when` is true of, the store is away for some seconds."""
    began: list[float] = []

    def down(method: str, path: str) -> bool:
        if not began and when(method, path):
            began.append(time.monotonic())
        return bool(began) and time.monotonic() < began[0] + seconds

    place.store.proxy.down = down


def writes_a_shard(method: str, path: str) -> bool:
    return method in ("PUT", "POST") and ("shard" in path or "upload" in path)
