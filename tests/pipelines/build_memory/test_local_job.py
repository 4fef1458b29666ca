"""The local job equals the plain Beam graph byte for byte, for all options, interruptions and numbers of pieces."""

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clara.data.records import Chunk, chunk_id, row_id
from clara.memory.store import MemoryStore
from clara.storage.folders import sha256_file
from clara.storage.manifest import read_manifest
from pipelines import compact
from pipelines.build_memory import run as memory_run
from pipelines.build_memory.command import main
from pipelines.build_memory.local import records as local_records
from pipelines.build_memory.local import worker as local_worker
from pipelines.corpus import spill
from pipelines.corpus import splits as units
from pipelines.job.progress import Reading, Seen
from tests.helpers import tiny

Job = Callable[..., Path]


def corpus(seed: int) -> dict[str, bytes]:
    """Two files of documents with exact and near duplicates, long and short texts and broken lines, shuffled."""
    rng = random.Random(seed)
    rows: list[dict[str, str]] = list(tiny.documents())
    for number in range(12):
        words = [f"w{rng.randrange(400)}" for _ in range(60)]
        rows.append({"id": f"near{number}", "text": " ".join(words)})
        rows.append({"id": f"nearly{number}", "text": " ".join([*words[:-1], "other"])})
    rows += [{"id": f"copy{n}", "title": rows[n]["title"], "text": rows[n]["text"]} for n in range(0, 40, 5)]
    rows += [
        {"id": f"titled{n}", "title": " ".join(f"title{n}{k}" for k in range(60)), "text": f"Short text {n}."}
        for n in range(2)
    ]
    rows += [{"id": "doc-03", "text": f"Another text of this id, number {n}."} for n in range(2)] + [
        {"id": "near2", "text": "Other."}
    ]
    rows += [
        {"id": f"long{n}", "text": " ".join(f"Sentence {n} of {k} occurs here." for k in range(40))} for n in range(3)
    ]
    lines = [json.dumps(row).encode() for row in rows] + [b"{broken", b'{"text": ""}', b'{"text": "x"}', b""] * 3
    rng.shuffle(lines)
    half = len(lines) // 2
    return {"b.jsonl": b"\n".join(lines[:half]) + b"\n", "a.jsonl": b"\n".join(lines[half:])}


def files(memory: Path) -> dict[str, str]:
    return {
        str(p.relative_to(memory)): sha256_file(p)
        for p in sorted([*memory.glob("*shard-*/[!p.]*"), *memory.glob("dead_letters*")])
    }


@pytest.fixture
def build(tiny_checkpoint: Path, tmp_path: Path) -> Job:
    """Runs the command on a corpus and returns its output."""

    def run(output: str, given: dict[str, bytes], *arguments: str) -> Path:
        (tmp_path / "corpus").mkdir(exist_ok=True)
        for name, data in given.items():
            (tmp_path / "corpus" / name).write_bytes(data)
        fixed = [
            "--input",
            str(tmp_path / "corpus" / "*"),
            "--output",
            str(tmp_path / output),
            "--checkpoint",
            str(tiny_checkpoint),
        ]
        assert (
            main([*fixed, "--num-workers=1", *(() if "--update" in arguments else ("--dtype=float32",)), *arguments])
            == 0
        )
        return tmp_path / output

    return run


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of about a thousand bytes, and files of spilled chunks of as many."""
    monkeypatch.setattr(units, "UNIT_BYTES", 1000)
    monkeypatch.setattr(local_records, "_FILE_BYTES", 3000)


PLAIN = "--runner=BundleBasedDirectRunner"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--num-shards=3", "--min-characters=3"), marks=pytest.mark.slow),
        pytest.param(("--near-duplicates=0.6",), marks=pytest.mark.slow),
        ("--limit=50", "--near-duplicates=0.6", "--min-characters=3"),
        pytest.param(("--codec=pq8", "--limit=80"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_it_makes_what_the_plain_graph_makes(build: Job, in_pieces: None, arguments: tuple[str, ...]) -> None:
    given = corpus(1)
    assert len(units.find_units([str(build("plain", given, *arguments, PLAIN).parent / "corpus" / "*")], "auto")) > 5
    local = build("local", given, *arguments)
    assert files(local) == files(local.parent / "plain")
    assert len(files(local)) > 2
    assert MemoryStore.open(local, verify=True).hash == MemoryStore.open(local.parent / "plain").hash
    counts = read_manifest(local)["counts"]
    # Near duplicates are looked for among documents, before these are chunked, and find the equal ones.
    assert ("--near-duplicates=0.6" in arguments) == (counts["duplicate chunks dropped"] == 0)
    assert counts["dead letters by reason"] == {"empty text": 3, "not JSON": 3}
    assert ("--near-duplicates=0.6" in arguments) == bool(counts["dropped by reason"].get("near duplicate"))
    assert counts["title tokens cut off"] > 0 < counts["tokens of documents split"]
    assert not list(local.glob(".spill*"))


@pytest.mark.slow
def test_an_update_is_what_the_plain_graph_makes_of_it(build: Job, in_pieces: None) -> None:
    first, second = corpus(1), {**corpus(1), "b.jsonl": corpus(2)["b.jsonl"]}
    old = build("old", first, "--num-shards=4")
    plain = build("plain", second, "--update", str(old), PLAIN)
    local = build("local", second, "--update", str(old))
    assert files(local) == files(plain)
    assert MemoryStore.open(local, verify=True).hash == MemoryStore.open(plain).hash
    assert read_manifest(local)["counts"]["rows gone"] > 0
    # Unused records are reported as by a build from nothing, and still are after the version is folded.
    letters = (build("fresh", second, "--num-shards=4") / "dead_letters.jsonl").read_bytes()
    assert b'"reason": "duplicate"' in letters
    assert (local / "dead_letters.jsonl").read_bytes() == letters
    assert compact.main(["--memory", str(local), "--output", str(local.parent / "folded")]) == 0
    assert (local.parent / "folded" / "dead_letters.jsonl").read_bytes() == letters


@pytest.mark.slow
def test_what_an_interrupted_run_put_aside_is_taken_up(
    build: Job, in_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = corpus(3)
    whole = build("whole", given, "--near-duplicates=0.6")
    chunked: list[str] = []
    original = local_worker.chunks_of

    def counted(document: Any, *rest: Any) -> Any:
        chunked.append(document.id)
        if len(chunked) == 30:
            raise KeyboardInterrupt
        return original(document, *rest)

    monkeypatch.setattr(local_worker, "chunks_of", counted)
    with pytest.raises(KeyboardInterrupt):
        build("stopped", given, "--near-duplicates=0.6")
    done = len(list((whole.parent / "stopped" / ".spill").glob("unit-??????.json")))
    assert done > 0
    again = build("stopped", given, "--near-duplicates=0.6")
    everything = read_manifest(whole)["counts"]["documents"]
    assert len(chunked) < 30 + everything  # what was done is not done again
    assert files(again) == files(whole)
    assert not (again / ".spill").exists()


def test_what_another_recipe_put_aside_is_not(build: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(memory_run, "remove_spill", lambda spill: None)
        first = build("memory", corpus(1), "--limit=20")
        assert list((first / ".spill").glob("unit-*.json"))
    (first / "manifest.json").unlink()
    again = build("memory", corpus(1), "--limit=30")
    assert read_manifest(again)["counts"]["documents"] == 30
    assert not (again / ".spill").exists()


def test_a_run_that_was_killed_behind_its_manifest_is_cleared_up(build: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(memory_run, "remove_spill", lambda spill: None)
        memory = build("memory", corpus(1))
    assert (memory / ".spill").exists()
    build("memory", corpus(1))
    assert not (memory / ".spill").exists()


@pytest.mark.slow
def test_many_letters_fill_the_same_parts(build: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.corpus.dead_letters._LETTERS_PER_FILE", 10)
    given = {"a.jsonl": b'{"text": "One."}\n' + b"bad\n" * 55}
    local, plain = build("local", given), build("plain", given, PLAIN)
    assert files(local) == files(plain)
    assert len(list(local.glob("dead_letters-*-of-00008.jsonl"))) == 8


def test_the_spill_folder_can_be_elsewhere(build: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    original = memory_run.remove_spill
    monkeypatch.setattr(
        memory_run,
        "remove_spill",
        lambda spill: (seen.append((tmp_path / "aside" / "plan.json").exists()), original(spill)),
    )
    memory = build("memory", corpus(1), "--spill", str(tmp_path / "aside"))
    assert seen == [True]
    assert not (tmp_path / "aside").exists()
    assert not (memory / ".spill").exists()


def peak_bytes(act: Callable[[int], Any]) -> int:
    """Of the numbered call itself, the least of three: threads that earlier tests have left allocate, too."""
    peaks = []
    for number in range(3):
        tracemalloc.start()
        try:
            act(number)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


def some_chunk(number: int) -> Chunk:
    text = f"{number} " + "x" * 1000
    identity = chunk_id("", text)
    return Chunk(row_id(identity), identity, f"d{number}", "", text, 0, len(text), 9, False, "corpus.jsonl")


@pytest.mark.parametrize("num_contents", [10**9, 100], ids=["all differ", "few contents"])
def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_contents: int
) -> None:
    monkeypatch.setattr(local_records, "_FILE_BYTES", 200_000)

    def put_aside(folder: Path, num_chunks: int) -> None:
        folder.mkdir()
        for unit in range(num_chunks // 500):  # a corpus that grows has more units
            writer = local_records.ChunkWriter(spill.unit_stem(str(folder), unit), 0)
            for number in range(500 * unit, 500 * unit + 500):
                writer.add(some_chunk(number % num_contents), number)
            writer.flush()

    def read_back(folder: Path, num_shards: int) -> None:
        files = spill.files_of(str(folder), "chunks")
        local_records.first_occurrences(files, 0, num_shards, fixed=False)

    put_aside(tmp_path / "warm", 500)
    small, large = (peak_bytes(lambda i, n=n: put_aside(tmp_path / f"n{n}-{i}", n)) for n in (1000, 5000))
    assert large < 1.1 * small
    # Shards of as many rows: five times the chunks are about five times the shards; few contents in as many shards,
    # however often each occurs.
    more = 1 if num_contents == 100 else 4
    small, large = (
        peak_bytes(lambda i, n=n, s=s: read_back(tmp_path / f"n{n}-{i}", s)) for n, s in ((1000, 4), (5000, 4 * more))
    )
    assert large < 1.5 * small


def test_progress_counts_pieces_documents_and_shards(tmp_path: Path) -> None:
    so_far = local_records.ReadSoFar(str(tmp_path), 4)
    assert so_far() == Reading(0, 4, 0, 0)
    assert so_far().describe(2.0) == "read 0 of 4 pieces, 0 documents (0.0 a second)"
    (tmp_path / "unit-000001.json").write_text(json.dumps({"tallies": {"documents": 10, "chunks": 30}}))
    (tmp_path / "unit-000002.survey.json").write_text(json.dumps({"documents": 99}))
    (tmp_path / "unit-000003.json").write_text("{half")
    assert so_far() == Reading(1, 4, 10, 30)
    assert so_far().describe(20.0) == "read 1 of 4 pieces, 10 documents (0.5 a second), 01:00 left"
    assert Seen(90, 300, 3, 12).describe(so_far(), 60.0) == "3 of 12 shards, 20.0 documents a second"
    assert Seen(90, 300, 3, 12).describe(None, 60.0) == "3 of 12 shards"
