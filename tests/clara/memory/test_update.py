"""Updates of a MEMORY: ids and records equal a build from nothing, after any number of changes; compaction."""

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clara.data.records import Chunk, chunk_id, row_id
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.search import MemoryIndex
from clara.memory.compact import compact
from clara.memory.compress import Encoding, write_memory_shard
from clara.memory.fingerprint import Fingerprint
from clara.memory.mean import MOVED, REPLACED, read_mean
from clara.memory.product_quantiser import FILE, Codebook, save_codebook
from clara.memory.shards import shard_name
from clara.memory.store import MemoryStore, complete_memory
from clara.memory.update import changes_of, complete_update, next_generation, write_overlay
from clara.model.array_geometry import unit_rows
from clara.storage import folders
from clara.storage.folders import sha256_file
from clara.storage.manifest import file_entry, read_manifest
from clara.storage.transfer import link
from pipelines import compact as compact_command
from pipelines.build_memory.command import main
from tests.helpers import tiny
from tests.helpers.fuzz import examples
from tests.helpers.memories import FIRST_LEVEL

M, D = 2, 6
FINGERPRINT = Fingerprint("b", "c", "t", "float32", M, D, "none", True, 96, 0, M * D, 0)


class Drawn:
    """A compressor whose memory is drawn from the text's tokens, whatever the batch; it counts what it compresses."""

    num_memory_tokens, hidden_size = M, D

    def __init__(self) -> None:
        self.count = 0

    def document_ids(self, text: str) -> list[int]:
        return list(text.encode())

    def compress(self, texts: Sequence[Sequence[int]]) -> Tensor:
        self.count += len(texts)
        drawn = [
            torch.randn(M, D, generator=torch.Generator().manual_seed(int.from_bytes(bytes(text)[-6:], "big")))
            for text in texts
        ]
        if any(b"POISON" in bytes(text) for text in texts):
            raise RuntimeError("poisoned")
        return torch.stack(drawn)


def chunk(number: int, document: str = "d", text: str = "Text") -> Chunk:
    text = f"{text} {number}."
    identity = chunk_id("", text)
    return Chunk(row_id(identity), identity, document, "", text, 0, len(text), 3, False, "corpus.jsonl")


CODEBOOK = Codebook(np.random.default_rng(0).standard_normal((2, 256, 4)).astype(np.float32))


def built(directory: Path, chunks: Sequence[Chunk], codec: str, num_shards: int = 3) -> MemoryStore:
    model, reports, extra_files = Drawn(), [], []
    codebook = CODEBOOK if codec == "pq4" else None
    if codebook:
        save_codebook(directory, codebook)
        extra_files.append(file_entry(directory, FILE))
    for shard in range(num_shards):
        own = [c for c in chunks if c.row_id % num_shards == shard]
        if own:
            name = shard_name(shard, num_shards)
            encoding = Encoding(FINGERPRINT, codec, 64, codebook)
            reports.append(write_memory_shard(lambda: model, own, directory, name, encoding))
    made = {"fingerprint": FINGERPRINT, "codec": codec, "num_shards": num_shards, "recipe": {}, "counts": {}}
    complete_memory(directory, reports, **made, extra_files=extra_files)
    return MemoryStore.open(directory)


def updated(old: MemoryStore, directory: Path, chunks: Sequence[Chunk]) -> tuple[MemoryStore, int]:
    """The new version, and how many chunks were compressed for it."""
    model, n = Drawn(), old.num_shards
    reports = [
        write_overlay(
            lambda: model,
            [c for c in chunks if c.row_id % n == shard],
            old.directory,
            shard,
            directory,
            fingerprint=FINGERPRINT,
            batch_tokens=64,
        )
        for shard in range(n)
    ]
    complete_update(old.directory, directory, reports, recipe={}, counts={})
    return MemoryStore.open(directory, [FINGERPRINT], verify=True), model.count


def assert_same(store: MemoryStore, expected: MemoryStore) -> None:
    rows = expected.row_ids
    assert np.array_equal(store.row_ids, rows)
    assert store.records(rows) == expected.records(rows)
    assert store.document_ids == expected.document_ids
    assert np.array_equal(store.memory(rows), expected.memory(rows))
    assert np.array_equal(store.keys(), expected.keys())


def assert_mean_of_the_first(store: MemoryStore, first: Path, exact: bool) -> None:
    """An update keeps the mean, and says where its own rows' mean is."""
    assert np.array_equal(store.mean, MemoryStore.open(first).mean)
    own = store.memory(store.row_ids).astype(np.float64).sum(axis=0)
    total = read_mean(store.artefact)[1]
    if exact:
        assert np.allclose(total, own, atol=1e-6)
    assert not list(store.directory.rglob(REPLACED))
    if len(store):
        old, new = store.mean.ravel(), total.ravel() / len(store)
        lengths = np.linalg.norm(old) * np.linalg.norm(new)
        assert store.manifest[MOVED]["cosine"] == pytest.approx(old @ new / lengths if lengths else 0.0, abs=1e-5)


CORPORA = st.lists(st.dictionaries(st.integers(0, 11), st.sampled_from(["d", "e"]), max_size=8), min_size=2, max_size=3)


@given(CORPORA, st.sampled_from(["float16", "int8", "int4", "pq4"]))
@settings(max_examples=examples(5), deadline=None)
def test_any_chain_of_updates_equals_a_build_from_nothing_and_so_does_its_compaction(
    corpora: list[dict[int, str]], codec: str
) -> None:
    versions = [[chunk(number, document) for number, document in corpus.items()] for corpus in corpora]
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = built(folder / "v0", versions[0], codec)
        exact = True  # while no row is gone, whose vectors an update does not read
        for number, (before, after) in enumerate(itertools.pairwise(versions), 1):
            previous = store
            store, compressed = updated(previous, folder / f"v{number}", after)
            assert compressed == len({c.row_id for c in after} - {c.row_id for c in before})
            assert_same(store, built(folder / f"fresh{number}", after, codec))
            assert store.manifest["parent"] == previous.hash
            exact = exact and {c.row_id for c in before} <= {c.row_id for c in after}
            assert_mean_of_the_first(store, folder / "v0", exact)
        for shards in (0, 2)[: len(corpora) - 1]:
            compact(store, folder / f"plain{shards}", num_shards=shards)
            plain = MemoryStore.open(folder / f"plain{shards}", [FINGERPRINT], verify=True)
            assert_same(plain, store)
            assert plain.manifest["overlays"] == plain.manifest["tombstones"] == []
            assert_mean_of_the_first(plain, folder / "v0", exact=True)
        assert_same(MemoryStore.open(folder / "v0", verify=True), built(folder / "again", versions[0], codec))


def test_changes_are_classified() -> None:
    known = {c.row_id: c for c in (chunk(0), chunk(1), chunk(2))}
    twin = replace(chunk(2), chunk_id="other content of the same row id")
    found = changes_of([chunk(9), chunk(1, "elsewhere"), chunk(0), twin], known)
    assert (found.kept, found.moved, found.gone) == ([chunk(0)], [chunk(1, "elsewhere")], [])
    assert found.fresh == sorted([chunk(9), twin], key=lambda c: c.row_id)
    assert changes_of([], known).gone == sorted(known)


def test_a_compacted_store_has_the_bytes_of_one_that_was_never_updated(tmp_path: Path) -> None:
    chunks = [chunk(n) for n in range(20)]
    old = built(tmp_path / "old", chunks[:15], "float16")
    new, _ = updated(old, tmp_path / "new", chunks[3:])
    compact(new, tmp_path / "plain")
    built(tmp_path / "fresh", chunks[3:], "float16")
    files = sorted(path.relative_to(tmp_path / "fresh") for path in (tmp_path / "fresh").glob("shard-*/[!p]*"))
    assert len(files) == 9
    assert all(sha256_file(tmp_path / "plain" / file) == sha256_file(tmp_path / "fresh" / file) for file in files)


def test_either_version_can_be_removed_and_a_copy_replaces_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [chunk(n) for n in range(20)]
    old = built(tmp_path / "old", chunks[:15], "float16")
    linked, _ = updated(old, tmp_path / "linked", chunks)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(folders.os, "link", refuse)
    copied, _ = updated(old, tmp_path / "copied", chunks)
    name = f"{shard_name(0, 3)}/memory.safetensors"
    assert (tmp_path / "linked" / name).stat().st_ino == (tmp_path / "old" / name).stat().st_ino
    assert (tmp_path / "copied" / name).stat().st_ino != (tmp_path / "old" / name).stat().st_ino
    damaged = tmp_path / "copied" / "x"
    entry = {**file_entry(tmp_path / "old", name), "sha256": "0" * 64}
    with pytest.raises(InputError, match="its sha256 is not the manifest's"):
        link(tmp_path / "old", damaged, [entry])
    assert not any(damaged.rglob("*.safetensors"))
    shutil.rmtree(tmp_path / "old")
    for store in (linked, copied):
        again = MemoryStore.open(store.directory, verify=True)
        assert_same(again, built(tmp_path / f"fresh-{store.directory.name}", chunks, "float16"))


def test_a_shard_that_lost_all_its_rows_is_not_carried_along(tmp_path: Path) -> None:
    chunks = [chunk(n) for n in range(30)]
    old = built(tmp_path / "old", chunks, "float16")
    new, compressed = updated(old, tmp_path / "new", [c for c in chunks if c.row_id % 3 != 1])
    assert compressed == 0
    assert new.manifest["shards"] == [shard_name(0, 3), shard_name(2, 3)]
    assert not (tmp_path / "new" / shard_name(1, 3)).exists()


def test_an_overlay_goes_on_where_it_stood(tmp_path: Path) -> None:
    old = built(tmp_path / "old", [chunk(n) for n in range(9)], "int8")
    chunks = [c for c in [*(chunk(n, "moved") for n in range(9)), chunk(50), chunk(51), chunk(52)] if c.row_id % 3 == 0]
    model, arguments = Drawn(), {"fingerprint": FINGERPRINT, "batch_tokens": 64}
    first = write_overlay(lambda: model, chunks, tmp_path / "old", 0, tmp_path / "new", **arguments)
    count = model.count
    second = write_overlay(lambda: model, chunks[::-1], tmp_path / "old", 0, tmp_path / "new", **arguments)
    assert model.count == count
    assert second == {**first, "reused": True}
    with pytest.raises(InputError, match="1 shards updated"):
        complete_update(old.directory, tmp_path / "new", [first], recipe={}, counts={})


def test_a_new_text_that_cannot_be_compressed_is_a_failure_and_takes_no_row(tmp_path: Path) -> None:
    old = built(tmp_path / "old", [chunk(n) for n in range(9)], "float16")
    poison = chunk(0, text="POISON")
    index = poison.row_id % 3
    own = [c for c in map(chunk, range(9)) if c.row_id % 3 == index]
    report = write_overlay(
        Drawn, [*own, poison], old.directory, index, tmp_path / "new", fingerprint=FINGERPRINT, batch_tokens=64
    )
    assert [f["chunk_id"] for f in report["failures"]] == [poison.chunk_id]
    assert (report["rows"], report["files"], report["compressed"]) == (len(own), [], 0)


def test_overlays_of_other_makers_are_numbered_around() -> None:
    assert next_generation([]) == 1
    assert next_generation(["overlay-1", "refreshed-7", "overlay-00004-shard-00000-of-00003"]) == 5


# --- the commands ----------------------------------------------------------------------------------------------------


def run(checkpoint: Path, corpus: Path, output: Path, *arguments: str) -> dict[str, Any]:
    given = [
        "--input",
        str(corpus),
        "--output",
        str(output),
        "--checkpoint",
        str(checkpoint),
        "--num-workers=1",
        *arguments,
    ]
    assert main(given) == 0
    return dict(read_manifest(output)["counts"])


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_job_updates_and_compacts(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tiny.documents()
    corpus = write_rows(tmp_path / "corpus.jsonl", rows[:30])
    run(tiny_checkpoint, corpus, tmp_path / "v0", "--num-shards=4", "--dtype=float32", "--key-size=64", "--codec=int8")
    before = MemoryStore.open(tmp_path / "v0").hash
    changed = [
        *rows[5:20],
        {**rows[20], "text": "Rewritten altogether."},
        *rows[21:36],
        {"id": "extra", "text": "Added."},
    ]
    write_rows(corpus, changed)
    counts = run(tiny_checkpoint, corpus, tmp_path / "v1", "--update", str(tmp_path / "v0"))
    # Each line number moved, and a record does not hold it; so the others stay as they are.
    assert {name: counts[f"rows {name}"] for name in ("kept", "moved", "compressed", "gone")} == {
        "kept": 24,
        "moved": 0,
        "compressed": 8,
        "gone": 6,
    }
    run(
        tiny_checkpoint,
        corpus,
        tmp_path / "fresh",
        "--num-shards=4",
        "--dtype=float32",
        "--key-size=64",
        "--codec=int8",
    )
    store, fresh = (MemoryStore.open(tmp_path / name, verify=True) for name in ("v1", "fresh"))
    assert np.array_equal(store.row_ids, fresh.row_ids)
    assert store.records(store.row_ids) == fresh.records(store.row_ids)
    step = np.abs(fresh.memory(fresh.row_ids)).max() / 127
    assert np.abs(store.memory(store.row_ids) - fresh.memory(store.row_ids)).max() < 1.5 * step
    assert MemoryStore.open(tmp_path / "v0", verify=True).hash == before
    capsys.readouterr()
    run(tiny_checkpoint, corpus, tmp_path / "v1", "--update", str(tmp_path / "v0"))
    assert "up to date" in capsys.readouterr().out
    build_index(tmp_path / "v1", tmp_path / "index", num_queries=0)
    found, scores = MemoryIndex.open(tmp_path / "index", store).search(store.memory(store.row_ids[:5]), 1, FIRST_LEVEL)
    assert found[:, 0].tolist() == store.row_ids[:5].tolist()
    assert np.allclose(scores, 1, atol=1e-5)
    assert compact_command.main(["--memory", str(tmp_path / "v1"), "--output", str(tmp_path / "plain")]) == 0
    plain = MemoryStore.open(tmp_path / "plain", verify=True)
    assert_same(plain, store)
    assert not list((tmp_path / "plain").glob("overlay-*"))
    assert (tmp_path / "plain" / "dead_letters.jsonl").exists()
    assert compact_command.main(["--memory", str(tmp_path / "v1"), "--output", str(tmp_path / "plain")]) == 0
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize("codec", ["int4", "pq8"])
def test_the_job_stores_by_codec_and_an_update_keeps_it(tiny_checkpoint: Path, tmp_path: Path, codec: str) -> None:
    rows = [{"id": f"n{n}", "text": f"Number {n} of {n * 7919 % 104729} occurs here."} for n in range(70)]
    corpus = write_rows(tmp_path / "corpus.jsonl", rows[:65])
    for name, arguments in (("exact", ["--codec=float16"]), ("one", [f"--codec={codec}"])):
        run(tiny_checkpoint, corpus, tmp_path / name, "--num-shards=2", "--dtype=float32", *arguments)
    exact, store = MemoryStore.open(tmp_path / "exact"), MemoryStore.open(tmp_path / "one", verify=True)
    assert store.codec == codec
    assert np.array_equal(store.row_ids, exact.row_ids)
    wanted = unit_rows(exact.memory(exact.row_ids))
    cosines = (unit_rows(store.memory(store.row_ids)) * wanted).sum(axis=1)
    assert cosines.min() > 0.98
    payload = sum(path.stat().st_size for path in (tmp_path / "one").glob("shard-*/memory.safetensors"))
    assert payload < sum(path.stat().st_size for path in (tmp_path / "exact").glob("shard-*/memory.safetensors"))
    write_rows(corpus, rows[3:])
    counts = run(tiny_checkpoint, corpus, tmp_path / "v1", "--update", str(tmp_path / "one"))
    assert (counts["rows compressed"], counts["rows gone"]) == (5, 3)
    new = MemoryStore.open(tmp_path / "v1", verify=True)
    both = np.intersect1d(new.row_ids, store.row_ids)
    assert new.codec == codec
    assert np.array_equal(new.memory(both), store.memory(both))
    build_index(tmp_path / "v1", tmp_path / "index", num_queries=0)
    found, _ = MemoryIndex.open(tmp_path / "index", new).search(new.memory(new.row_ids[:9]), 1, FIRST_LEVEL)
    assert found[:, 0].tolist() == new.row_ids[:9].tolist()


def test_a_corpus_too_small_for_a_codebook_is_reported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", tiny.documents()[:9])
    with pytest.raises(InputError, match="codec pq8: 36 memory tokens to train on, expected at least 256"):
        run(tiny_checkpoint, corpus, tmp_path / "v0", "--codec=pq8")
    assert not (tmp_path / "v0" / "manifest.json").exists()


def test_an_update_of_something_else_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", tiny.documents()[:3])
    run(tiny_checkpoint, corpus, tmp_path / "v0", "--dtype=float32")
    for flag, value in (
        ("--codec=int8", "float16"),
        ("--dtype=bfloat16", "float32"),
        ("--max-tokens=64", "96"),
        ("--num-shards=3", "1"),
    ):
        with pytest.raises(InputError, match=rf"{flag.partition('=')[0]} .* has {value}, which its new version keeps"):
            run(tiny_checkpoint, corpus, tmp_path / "v1", "--update", str(tmp_path / "v0"), flag)
    with pytest.raises(InputError, match="is the MEMORY of --update"):
        run(tiny_checkpoint, corpus, tmp_path / "v0", "--update", str(tmp_path / "v0"))
    with pytest.raises(InputError, match="no finished MEMORY"):
        run(tiny_checkpoint, corpus, tmp_path / "v1", "--update", str(tmp_path / "nothing"))
    other = tmp_path / "v0" / "manifest.json"
    manifest = json.loads(other.read_text())
    manifest["fingerprint_fields"]["compressor"] = "another"
    other.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"--update .*: made by another compressor"):
        run(tiny_checkpoint, corpus, tmp_path / "v1", "--update", str(tmp_path / "v0"))
    with pytest.raises(InputError, match="is the MEMORY of --memory"):
        compact_command.main(["--memory", str(tmp_path / "v0"), "--output", str(tmp_path / "v0")])
    with pytest.raises(InputError, match="--num-shards is -1"):
        compact_command.main(["--memory", str(tmp_path / "v0"), "--output", str(tmp_path / "x"), "--num-shards=-1"])
