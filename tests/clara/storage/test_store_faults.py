"""Object stores that fail: outages, damage, kills."""

import json
import signal
import time
from pathlib import Path

import pytest

from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage import cache as localise
from clara.storage import folders as storage
from clara.storage.artefact import Artefact, read_manifest
from clara.storage.base import StorageError
from clara.storage.bucket import Bucket
from clara.storage.retry import PATIENCE
from pipelines.build_memory.command import main as build_memory
from tests.helpers import warm
from tests.helpers.store_place import Place, command, outage, put, shard_hashes, writes_a_shard


def test_a_damaged_or_missing_object_is_reported(place: Place, local: Path) -> None:
    memory = put(local, place / "memory")
    name = "shard-00001-of-00003/memory.safetensors"
    damaged = bytearray((local / name).read_bytes())
    damaged[-1] ^= 1
    storage.folder(memory).write(name, bytes(damaged))
    with pytest.raises(InputError, match=f"{memory}/{name}: its sha256 is not the manifest's"):
        MemoryStore.open(memory)
    storage.folder(memory).write(name, bytes(damaged[:-1]))
    with pytest.raises(InputError, match=r"bytes, its manifest says"):
        MemoryStore.open(memory)
    storage.folder(memory).remove([name])
    with pytest.raises(InputError, match="missing, its manifest says"):
        MemoryStore.open(memory)
    with pytest.raises(InputError, match=r"no manifest\.json, so this is no finished MEMORY"):
        MemoryStore.open(place / "nowhere")


def test_a_manifest_does_not_lead_outside(place: Place, local: Path) -> None:
    memory = put(local, place / "memory")
    manifest = read_manifest(memory)
    manifest["files"][0]["path"] = "../../evil"
    storage.atomic_write(f"{memory}/manifest.json", json.dumps(manifest))
    with pytest.raises(InputError, match="no file inside of it"):
        Artefact.open(memory, "MEMORY")


def test_a_store_that_is_away_for_a_while_is_waited_for(place: Place, local: Path, tiny_checkpoint: Path) -> None:
    outage(place, writes_a_shard, 4.0)
    before = place.store.proxy.refused
    assert build_memory(command("corpus.jsonl", place / "memory", str(tiny_checkpoint))) == 0
    assert place.store.proxy.refused > before
    assert shard_hashes(place / "memory") == shard_hashes(local)


@pytest.mark.slow
def test_a_store_that_stays_away_is_reported_and_the_next_run_finishes(
    place: Place, local: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def after_one_shard(method: str, path: str) -> bool:
        nonlocal written
        written += writes_a_shard(method, path)
        return written > 4

    outage(place, after_one_shard, 1e9)
    monkeypatch.setenv(PATIENCE, "2")
    with pytest.raises(InputError, match=r"the store has not answered for \d+ s .*run the same command again"):
        build_memory(command("corpus.jsonl", place / "memory", str(tiny_checkpoint)))
    place.store.proxy.down = lambda method, path: False
    monkeypatch.setenv(PATIENCE, "60")
    assert not storage.exists(place / "memory/manifest.json")
    assert build_memory(command("corpus.jsonl", place / "memory", str(tiny_checkpoint))) == 0
    assert shard_hashes(place / "memory") == shard_hashes(local)


@pytest.mark.slow
def test_what_is_finished_is_kept_and_what_was_touched_is_made_again(
    place: Place, local: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command("corpus.jsonl", place / "memory", str(tiny_checkpoint))
    assert build_memory(arguments) == 0
    bucket = storage.folder(place / "memory")
    bucket.remove(["manifest.json"])
    name = "shard-00002-of-00003/memory.safetensors"
    damaged = bytearray((local / name).read_bytes())
    damaged[-1] ^= 1
    bucket.write(name, bytes(damaged))
    capsys.readouterr()
    assert build_memory(arguments) == 0
    assert "shards reused  2" in capsys.readouterr().out
    assert shard_hashes(place / "memory") == shard_hashes(local)
    MemoryStore.open(place / "memory", verify=True)


def test_a_bucket_that_is_not_there(place: Place, corpus: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="make the bucket, or correct the URL"):
        build_memory(command(str(corpus), place.url.replace("/bucket/", "/no-such-bucket/"), str(tiny_checkpoint)))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s3", pytest.param("gs", marks=pytest.mark.release)], indirect=True)
def test_killed_in_the_middle_and_run_again(place: Place, local: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = command("corpus.jsonl", place / "memory", str(tiny_checkpoint), "--num-workers=2", "--num-shards=8")
    job = warm.start(build_memory, arguments, said=tmp_path / "said")
    bucket = Bucket(place / "memory")
    deadline = time.monotonic() + 200
    while sum(name.endswith("plan.json") for name in bucket.files()) < 2:
        assert job.is_alive(), (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    warm.kill(job)
    assert job.exitcode == -signal.SIGKILL
    assert not storage.exists(place / "memory/manifest.json")
    assert build_memory(arguments) == 0
    assert build_memory(command("corpus.jsonl", str(tmp_path / "whole"), str(tiny_checkpoint), "--num-shards=8")) == 0
    assert shard_hashes(place / "memory") == shard_hashes(tmp_path / "whole")
    MemoryStore.open(place / "memory", verify=True)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["gs", pytest.param("s3", marks=pytest.mark.release)], indirect=True)
def test_workers_wait_for_a_store_too(place: Place, local: Path, tiny_checkpoint: Path) -> None:
    outage(place, writes_a_shard, 6.0)
    arguments = command("corpus.jsonl", place / "memory", str(tiny_checkpoint), "--num-workers=2")
    assert build_memory(arguments) == 0
    assert shard_hashes(place / "memory") == shard_hashes(local)


def test_patience_ends_once_and_begins_again_with_an_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "1")
    bucket = Bucket(place.url)
    place.store.proxy.down = lambda method, path: True
    with pytest.raises(StorageError, match="has not answered"):
        bucket.write("a", b"1")
    place.store.proxy.down = lambda method, path: False
    bucket.write("a", b"2")
    assert bucket.read("a") == b"2"
    assert bucket.read("b") is None
    assert localise.cache_directory().name == "cache"
