"""All commands on emulated S3 and GCS: artefacts equal those on a disk, through outages, kills and damage."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from clara.ask import main as ask
from clara.data.examples import read_examples
from clara.data.questions import read_questions
from clara.errors import InputError
from clara.memory.store import MemoryStore
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
from tests.helpers.store_place import Place, command, put, shard_hashes

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
        "mean.safetensors",
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


@pytest.mark.slow
def test_examples_of_a_language_model_are_copied_to_a_bucket(
    place: Place, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LanguageModel().running() as model:
        common = ["--input", str(corpus), "--model", model.url, "--model-name=tiny", "--limit=2", "--num-workers=1"]
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
