"""All commands on emulated S3 and GCS: artefacts equal those on a disk, through outages, kills and damage."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from clara.ask import main as ask
from clara.data.examples import read_examples
from clara.data.questions import read_questions
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage import cache as localise
from clara.storage import folders as storage
from clara.storage.artefact import Artefact
from clara.storage.base import StorageError
from clara.storage.bucket import Bucket
from clara.storage.cache import CACHE, local_folder
from clara.storage.folders import sha256_file
from clara.storage.manifest import manifest_hash, read_manifest
from clara.storage.retry import PATIENCE
from clara.storage.transfer import published
from pipelines import build_examples, build_index, compact
from pipelines.build_memory.command import main as build_memory
from pipelines.build_questions import command as build_questions
from pipelines.job.locks import SECONDS, Lease, acquire, leased, locked
from pipelines.synthesize.command import main as synthesize
from tests.helpers import stores, tiny, towns
from tests.helpers.artefacts import verify
from tests.helpers.language_model import LanguageModel


@dataclass(frozen=True)
class Place:
    """A folder of a bucket for one test."""

    url: str
    store: stores.Store

    def __truediv__(self, name: str) -> str:
        return f"{self.url}/{name}"


@pytest.fixture(scope="module")
def running() -> Iterator[Callable[[str], stores.Store]]:
    """A store by its kind; each is started once."""
    with ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(stores.running(kind)))


@pytest.fixture(params=["s3", "gs"])
def place(
    request: pytest.FixtureRequest,
    running: Callable[[str], stores.Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    store = running(request.param)
    for name, value in {**store.environment, CACHE: str(tmp_path / "cache"), PATIENCE: "60"}.items():
        monkeypatch.setenv(name, value)
    stores.forget_clients()
    store.proxy.log.clear()
    yield Place(f"{store.url}/{uuid.uuid4().hex[:8]}", store)
    store.proxy.down = lambda method, path: False


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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("stores") / "corpus.jsonl")


@pytest.fixture(scope="module")
def built(corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    memory = tmp_path_factory.mktemp("built") / "local"
    with contextlib.chdir(corpus.parent):
        assert build_memory(command("corpus.jsonl", str(memory), str(tiny_checkpoint))) == 0
    return memory


@pytest.fixture
def local(built: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The MEMORY that the same command makes on a disk, from the corpus in the working directory."""
    monkeypatch.chdir(corpus.parent)
    return built


# --- round trips -----------------------------------------------------------------------------------------------------


def test_from_a_corpus_in_a_bucket_to_an_answer(
    place: Place, local: Path, corpus: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.atomic_write(place / "corpus/corpus.jsonl", corpus.read_bytes())
    checkpoint = put(tiny_checkpoint, place / "checkpoint")
    arguments = command(place / "corpus/*.jsonl", place / "memory", checkpoint)
    assert build_memory(arguments) == 0
    manifest, expected = read_manifest(place / "memory"), read_manifest(local)
    assert manifest["counts"] == expected["counts"]
    store, twin = MemoryStore.open(place / "memory", verify=True), MemoryStore.open(local)
    assert np.array_equal(store.row_ids, twin.row_ids)
    assert store.directory.is_relative_to(tmp_path / "cache")
    # The records name their source, which is another one here; the vectors are the same, bit for bit.
    vectors = [
        {path: digest for path, digest in shard_hashes(m).items() if path.endswith(".safetensors")}
        for m in (place / "memory", local)
    ]
    assert vectors[0] == vectors[1]
    assert {chunk.source for chunk in store.records(store.row_ids)} == {place / "corpus/corpus.jsonl"}
    assert build_memory(arguments) == 0
    assert "up to date" in capsys.readouterr().out
    left = {name.split("/")[0] for name in storage.folder(place / "memory").files()}
    assert left == {
        "manifest.json",
        "dead_letters.jsonl",
        "summary.html",
        ".lock",
        *(f"shard-0000{n}-of-00003" for n in range(3)),
    }

    assert build_index.main(["--memory", place / "memory", "--output", place / "index", "--queries=0"]) == 0
    storage.atomic_write(place / "towns.jsonl", towns.write(tmp_path / "towns.jsonl").read_bytes())
    assert (
        build_questions.main(["--input", place / "towns.jsonl", "--format=cloze", "--output", place / "questions"]) == 0
    )
    assert (
        build_questions.main(
            ["--input", str(tmp_path / "towns.jsonl"), "--format=cloze", "--output", str(tmp_path / "questions")]
        )
        == 0
    )
    assert read_questions(place / "questions") == read_questions(tmp_path / "questions")
    assert manifest_hash(place / "questions") == manifest_hash(tmp_path / "questions")
    assert build_examples.main(["--input", place / "corpus/corpus.jsonl", "--output", place / "examples"]) == 0
    assert len(read_examples(place / "examples")) > 40
    capsys.readouterr()
    system = [
        "--checkpoint",
        checkpoint,
        "--memory",
        place / "memory",
        "--index",
        place / "index",
        "--json",
        "Who is mayor of Arlen?",
    ]
    assert ask(system) == 0
    answered = json.loads(capsys.readouterr().out)
    assert build_index.main(["--memory", str(local), "--output", str(tmp_path / "index"), "--queries=0"]) == 0
    here = [
        "--checkpoint",
        str(tiny_checkpoint),
        "--memory",
        str(local),
        "--index",
        str(tmp_path / "index"),
        "--json",
        "Who is mayor of Arlen?",
    ]
    capsys.readouterr()
    assert ask(here) == 0
    assert answered == json.loads(capsys.readouterr().out)


def test_the_same_bytes_from_the_same_files(place: Place, local: Path, tiny_checkpoint: Path) -> None:
    assert build_memory(command("corpus.jsonl", place / "memory", str(tiny_checkpoint))) == 0
    assert shard_hashes(place / "memory") == shard_hashes(local)
    assert manifest_hash(place / "memory") == manifest_hash(local)


def test_an_update_copies_inside_of_the_store(
    place: Place, local: Path, tiny_checkpoint: Path, tmp_path: Path, corpus: Path
) -> None:
    old = put(local, place / "v0")
    rows = tiny.documents()[1:] + [
        {"id": "new", "title": "Zeta", "text": "Zeta on the Nowhere is a town without a bridge."}
    ]
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["--input", str(changed), "--checkpoint", str(tiny_checkpoint), "--num-workers=1"]
    # Another source in every record: one that is the same keeps the rows.
    corpus_again = changed.with_name("corpus.jsonl")
    changed.rename(corpus_again)
    os.chdir(tmp_path)
    given[1] = "corpus.jsonl"
    assert build_memory([*given, "--update", str(local), "--output", str(tmp_path / "v1")]) == 0
    place.store.proxy.log.clear()
    assert build_memory([*given, "--update", old, "--output", place / "v1"]) == 0
    assert manifest_hash(place / "v1") == manifest_hash(tmp_path / "v1")
    kind = "alt=media" if place.url.startswith("gs") else "memory.safetensors"
    asked = [
        path
        for method, path in place.store.proxy.log
        if method == "GET" and "memory.safetensors" in path and "prefix=" not in path
    ]
    assert [path for path in asked if kind in path] == []  # vectors of the old version never came here
    assert np.array_equal(MemoryStore.open(place / "v1").keys(), MemoryStore.open(tmp_path / "v1").keys())
    assert compact.main(["--memory", place / "v1", "--output", place / "plain"]) == 0
    assert np.array_equal(MemoryStore.open(place / "plain").keys(), MemoryStore.open(tmp_path / "v1").keys())
    assert manifest_hash(old) == manifest_hash(local)


def test_a_language_model_in_a_bucket(place: Place, local: Path, tiny_backbone: Path, tiny_checkpoint: Path) -> None:
    for file in tiny_backbone.iterdir():
        storage.atomic_write(place / f"lm/{file.name}", file.read_bytes())
    assert {file.name for file in local_folder(place / "lm").iterdir()} == {
        file.name for file in tiny_backbone.iterdir()
    }
    arguments = ["--checkpoint", str(tiny_checkpoint), "--memory", str(local), "--backbone", place / "lm"]
    assert ask([*arguments, "--dry-run"]) == 0


# --- what is on this machine -----------------------------------------------------------------------------------------


def test_examples_of_a_language_model_are_copied_to_a_bucket(
    place: Place, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LanguageModel().running() as model:
        common = ["--input", str(corpus), "--model", model.url, "--model-name=tiny", "--limit=6", "--num-workers=1"]
        assert synthesize([*common, "--output", str(tmp_path / "examples")]) == 0
        requests = len(model.seen)
        if place.url.startswith("s3"):  # an upload to the other does not name its object in the URL
            monkeypatch.setenv(PATIENCE, "1")
            place.store.proxy.down = lambda method, path: "examples.parquet" in path
            with pytest.raises(StorageError):
                synthesize([*common, "--output", place / "examples"])
            place.store.proxy.down = lambda method, path: False
            monkeypatch.setenv(PATIENCE, "60")
            assert not storage.exists(place / "examples/manifest.json")
            assert len(model.seen) == 2 * requests, "replies are kept for each output"
            model.seen.clear()
            requests = 0
        assert synthesize([*common, "--output", place / "examples"]) == 0
        if not requests:
            assert not model.seen, "what was made before the store went away is copied, and not made again"
        assert read_examples(place / "examples") == read_examples(tmp_path / "examples")
        assert read_manifest(place / "examples")["counts"] == read_manifest(tmp_path / "examples")["counts"]
        assert synthesize([*common, "--output", place / "examples"]) == 0
        assert "up to date" in capsys.readouterr().out
        with pytest.raises(InputError, match="another recipe"):
            synthesize([*common, "--output", place / "examples", "--kinds=simple"])
    with pytest.raises(InputError, match="several make them"):
        synthesize([*common[:-1], "--output", place / "examples", "--runner=SparkRunner"])


def test_copies_are_checked_shared_and_go_on(
    place: Place, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = put(local, place / "memory")
    name = "shard-00000-of-00003/memory.safetensors"
    whole = (local / name).read_bytes()
    begun = tmp_path / "cache" / "files" / f"{sha256_file(local / name)}.partial"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(whole[:1000])
    folder = Artefact.open(memory, "MEMORY").folder
    assert verify(folder)["files"] == read_manifest(local)["files"]
    ranges = sum(
        method == "GET" and name.replace("/", "%2F") in path.replace("/", "%2F")
        for method, path in place.store.proxy.log
    )
    assert ranges == 1
    place.store.proxy.log.clear()
    assert Artefact.open(memory, "MEMORY").folder == folder
    assert not [path for method, path in place.store.proxy.log if "safetensors" in path]
    # Another version with the same files: nothing but its manifest is fetched.
    again = read_manifest(local) | {"parent": "another"}
    with published(place / "next") as scratch:
        shutil.copytree(local, scratch, dirs_exist_ok=True)
        (scratch / "manifest.json").write_text(json.dumps(again))
    place.store.proxy.log.clear()
    assert (Artefact.open(place / "next", "MEMORY").file(name)).stat().st_ino == (folder / name).stat().st_ino
    assert not [path for method, path in place.store.proxy.log if "safetensors" in path]
    # A copy that was damaged here is fetched again where every byte is asked for.
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    (folder / name).chmod(0o644)
    (folder / name).write_bytes(damaged)
    MemoryStore.open(memory, verify=True)
    assert (folder / name).read_bytes() == whole
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    monkeypatch.setenv(CACHE, str(tmp_path / "full"))
    with pytest.raises(InputError, match=r"bytes to copy into .*full, where 1 are free; make room"):
        Artefact.open(memory, "MEMORY")


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


# --- faults ----------------------------------------------------------------------------------------------------------


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


# --- one job at a time -----------------------------------------------------------------------------------------------


def test_the_second_job_refuses(place: Place, corpus: Path, tiny_checkpoint: Path) -> None:
    with locked(place / "memory"), pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing there"):
        build_memory(command(str(corpus), place / "memory", str(tiny_checkpoint)))
    assert build_memory(command(str(corpus), place / "memory", str(tiny_checkpoint))) == 0


def test_of_many_that_come_at_once_one_gets_the_place(place: Place) -> None:
    held: list[Lease] = []
    refused: list[str] = []

    def come() -> None:
        try:
            held.append(acquire(place / "memory"))
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert len(refused) == 5


def test_a_place_is_taken_over_from_a_job_that_died_elsewhere(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECONDS, "0.8")
    gone = acquire(place / "memory")
    said = json.loads(gone.record()) | {"process": {"boot": "another", "space": "machine", "pid": 1, "began": "0"}}
    Bucket(place / "memory").write(gone.name, json.dumps(said).encode())
    with pytest.raises(InputError, match=r"is writing there .*the place is free 1 s after"):
        acquire(place / "memory")
    time.sleep(0.9)
    with leased(place / "memory") as lease:
        assert lease.number == gone.number + 1
        with pytest.raises(InputError, match="has taken the place"):
            gone.check()
        time.sleep(1.5)
        lease.check()  # renewed, so that it is nobody's to take
        with pytest.raises(InputError, match="is writing there"):
            acquire(place / "memory")


def test_a_job_that_died_on_this_machine_is_known_at_once(place: Place) -> None:
    script = "import os, sys; from pipelines.job.locks import acquire; acquire(sys.argv[1]); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script, place / "memory"], env=dict(os.environ)).returncode == 9
    assert acquire(place / "memory").number == 2


def test_a_store_without_conditional_writes_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.url.startswith("s3"):
        pytest.skip("this emulator knows them")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{place.store.proxy.backend}")
    stores.forget_clients()
    with pytest.raises(InputError, match="lets a second job write over the first one's lock"):
        acquire(place / "memory")


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(
    place: Place, local: Path, tiny_checkpoint: Path, tmp_path: Path, corpus: Path
) -> None:
    arguments = command("corpus.jsonl", place / "memory", str(tiny_checkpoint), "--num-workers=2", "--num-shards=8")
    job = subprocess.Popen(
        [sys.executable, "-m", "pipelines.build_memory", *arguments], cwd=corpus.parent, stderr=subprocess.PIPE
    )
    bucket = Bucket(place / "memory")
    deadline = time.monotonic() + 200
    while sum(name.endswith("plan.json") for name in bucket.files()) < 2:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not storage.exists(place / "memory/manifest.json")
    os.chdir(corpus.parent)
    assert build_memory(arguments) == 0
    assert build_memory(command("corpus.jsonl", str(tmp_path / "whole"), str(tiny_checkpoint), "--num-shards=8")) == 0
    assert shard_hashes(place / "memory") == shard_hashes(tmp_path / "whole")
    MemoryStore.open(place / "memory", verify=True)


@pytest.mark.slow
def test_workers_wait_for_a_store_too(place: Place, local: Path, tiny_checkpoint: Path, corpus: Path) -> None:
    outage(place, writes_a_shard, 6.0)
    arguments = command("corpus.jsonl", place / "memory", str(tiny_checkpoint), "--num-workers=2")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.build_memory", *arguments], cwd=corpus.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
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
