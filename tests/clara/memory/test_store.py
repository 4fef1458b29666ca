"""MEMORY: codecs, shards, random access against a plain dictionary, versions, and every kind of damage."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clara.data.records import Chunk, chunk_id, row_id
from clara.errors import InputError
from clara.memory.codec import CODECS, decode_memory, encode_memory
from clara.memory.fingerprint import Fingerprint
from clara.memory.product_quantiser import FILE, Codebook, save_codebook
from clara.memory.shards import finished_report, plan_hash, shard_name, write_plan, write_shard
from clara.memory.store import MemoryStore, complete_memory
from clara.storage.artefact import Artefact
from clara.storage.folders import sha256_file
from clara.storage.manifest import file_entry, read_manifest, write_manifest
from clara.storage.mapped import map_tensors

M, D, KD = 3, 8, 6
FINGERPRINT = Fingerprint("b", "c", "t", "float32", M, D, "none", True, 96, 0, KD, 0)


def chunk(number: int) -> Chunk:
    text = f"Chunk number {number}."
    identity = chunk_id("Title", text)
    return Chunk(
        row_id(identity),
        identity,
        f"document-{number // 2}",
        "Title",
        text,
        0,
        len(text),
        5,
        number % 3 == 0,
        "corpus.jsonl",
    )


CHUNKS = [chunk(number) for number in range(25)]
RNG = np.random.default_rng(0)
MEMORY = RNG.standard_normal((25, M, D)).astype(np.float32)
KEYS = RNG.standard_normal((25, KD)).astype(np.float32)
CODEBOOK = Codebook(RNG.standard_normal((2, 256, 4)).astype(np.float32))


def write_version(directory: Path, codec: str = "float16", num_shards: int = 4) -> Path:
    reports, extra_files = [], []
    codebook = (
        CODEBOOK if codec == "pq4" else Codebook(CODEBOOK.centroids[:1].repeat(2, axis=2)) if codec == "pq8" else None
    )
    if codebook:
        save_codebook(directory, codebook)
        extra_files.append(file_entry(directory, FILE))
    for shard in range(num_shards):
        rows = [i for i, c in enumerate(CHUNKS) if c.row_id % num_shards == shard]
        name = shard_name(shard, num_shards)
        reports.append(
            write_shard(
                directory,
                name,
                [CHUNKS[i] for i in rows],
                MEMORY[rows],
                KEYS[rows],
                codec,
                fingerprint=FINGERPRINT.hash,
                codebook=codebook,
            )
        )
    complete_memory(
        directory,
        reports,
        fingerprint=FINGERPRINT,
        codec=codec,
        num_shards=num_shards,
        recipe={},
        counts={},
        extra_files=extra_files,
    )
    return directory


def test_a_damaged_codebook_is_reported(tmp_path: Path) -> None:
    directory = write_version(tmp_path / "memory", "pq4")
    path = directory / "codebook" / "centroids.safetensors"
    whole = path.read_bytes()
    path.write_bytes(b"\xff" * len(whole))
    with pytest.raises(InputError, match=r"centroids\.safetensors: not a readable codebook"):
        MemoryStore.open(directory).memory([CHUNKS[0].row_id])
    save_codebook(directory, Codebook(np.zeros((1, 256, 4), np.float32)))
    with pytest.raises(InputError, match=r"expected float32 \[2, 256, 4\]"):
        _ = MemoryStore(Artefact.open(directory, "MEMORY")).codebook
    path.unlink()
    with pytest.raises(InputError, match=r"centroids\.safetensors: missing"):
        MemoryStore.open(directory)


@pytest.mark.parametrize("codec", CODECS)
def test_rows_come_back_in_the_order_asked(tmp_path: Path, codec: str) -> None:
    store = MemoryStore.open(write_version(tmp_path / codec, codec), [FINGERPRINT], verify=True)
    assert len(store) == 25
    assert store.row_ids.tolist() == sorted(c.row_id for c in CHUNKS)
    rng = np.random.default_rng(1)
    for _ in range(20):
        asked = rng.integers(0, 25, size=int(rng.integers(0, 12)))
        rows = [CHUNKS[i].row_id for i in asked]
        assert np.array_equal(
            store.memory(rows),
            decode_memory(encode_memory(MEMORY[asked], codec, store.codebook), codec, D, store.codebook),
        )
        assert np.array_equal(store.keys(rows), KEYS[asked].astype(np.float16).astype(np.float32))
        assert store.records(rows) == [CHUNKS[i] for i in asked]
    by_row = {c.row_id: c for c in CHUNKS}
    assert store.document_ids == [by_row[row].document_id for row in store.row_ids.tolist()]
    assert store.rows_of("document-3") == sorted(c.row_id for c in CHUNKS if c.document_id == "document-3")
    assert store.rows_of("nobody") == []
    assert np.array_equal(store.keys(), store.keys(store.row_ids))
    assert sorted(row for _, rows in store.iter_shards() for row in rows.tolist()) == store.row_ids.tolist()


def test_a_shard_is_mapped(tmp_path: Path) -> None:
    directory = write_version(tmp_path / "memory")
    tensors = map_tensors(directory / shard_name(0, 4) / "memory.safetensors")
    assert all(isinstance(tensor, np.memmap) for tensor in tensors.values())


def test_bytes_do_not_depend_on_the_order_of_chunks(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(2).permutation(25)
    first = write_shard(tmp_path / "a", "s", CHUNKS, MEMORY, KEYS, "int8", fingerprint="f")
    second = write_shard(
        tmp_path / "b", "s", [CHUNKS[i] for i in shuffled], MEMORY[shuffled], KEYS[shuffled], "int8", fingerprint="f"
    )
    assert first == second


def test_equal_row_ids_are_refused(tmp_path: Path) -> None:
    twin = replace(CHUNKS[1], row_id=CHUNKS[0].row_id)
    with pytest.raises(InputError, match=f"row_id {CHUNKS[0].row_id} belongs to chunk"):
        write_shard(tmp_path, "s", [CHUNKS[0], twin], MEMORY[:2], KEYS[:2], "float16")


def test_unequal_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 chunks, 3 memories, 2 keys"):
        write_shard(tmp_path, "s", CHUNKS[:2], MEMORY[:3], KEYS[:2], "float16")


def test_newest_overlay_wins_and_tombstones_are_gone(tmp_path: Path) -> None:
    directory = write_version(tmp_path / "memory")
    first, second, dead, new = CHUNKS[0], CHUNKS[1], CHUNKS[2], chunk(99)
    overlays = [
        write_shard(directory, "overlay-1", [first, second], MEMORY[:2] + 1, KEYS[:2], "float16"),
        write_shard(directory, "overlay-2", [new, first], MEMORY[3:5] + 2, KEYS[:2], "float16"),
    ]
    manifest = read_manifest(directory)
    write_manifest(
        directory,
        kind="MEMORY",
        files=[*manifest["files"], *(file for overlay in overlays for file in overlay["files"])],
        recipe={},
        fingerprint=manifest["fingerprint"],
        **{name: manifest[name] for name in ("fingerprint_fields", "codec", "num_shards", "shards")},
        overlays=["overlay-1", "overlay-2"],
        tombstones=[dead.row_id],
    )
    store = MemoryStore.open(directory)
    assert store.row_ids.tolist() == sorted(c.row_id for c in [*CHUNKS, new] if c != dead)
    expected = np.stack([MEMORY[4] + 2, MEMORY[1] + 1, MEMORY[3] + 2, MEMORY[5]]).astype(np.float16).astype(np.float32)
    assert np.array_equal(store.memory([first.row_id, second.row_id, new.row_id, CHUNKS[5].row_id]), expected)
    with pytest.raises(InputError, match=f"row_id {dead.row_id} is not a live row"):
        store.memory([dead.row_id])


def test_a_row_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = MemoryStore.open(write_version(tmp_path / "memory"))
    with pytest.raises(InputError, match="row_id 7 is not a live row"):
        store.keys([CHUNKS[0].row_id, 7])


def test_another_compressors_memory_is_refused_field_by_field(tmp_path: Path) -> None:
    directory = write_version(tmp_path / "memory")
    with pytest.raises(InputError, match=r"compressor: expected 'mine', found 'c'; max_tokens: expected 128, found 96"):
        MemoryStore.open(directory, [replace(FINGERPRINT, compressor="mine", max_tokens=128)])


@pytest.mark.parametrize("file", ["records.parquet", "memory.safetensors"])
def test_damage_is_found_and_the_file_named(tmp_path: Path, file: str) -> None:
    directory = write_version(tmp_path / "memory")
    path = directory / shard_name(1, 4) / file
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(InputError, match=f"{shard_name(1, 4)}/{file}: its sha256"):
        MemoryStore.open(directory, verify=True)
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"{shard_name(1, 4)}/{file}: {len(whole) - 1} bytes"):
        MemoryStore.open(directory)
    path.unlink()
    with pytest.raises(InputError, match=f"{shard_name(1, 4)}/{file}: missing"):
        MemoryStore.open(directory)
    (directory / "manifest.json").unlink()
    with pytest.raises(InputError, match="no finished MEMORY"):
        MemoryStore.open(directory)


@pytest.mark.parametrize("file", ["records.parquet", "memory.safetensors"])
def test_a_flipped_byte_anywhere_is_found_by_verifying_and_never_met_with_a_strangers_stack(
    tmp_path: Path, file: str
) -> None:
    directory = write_version(tmp_path / "memory", num_shards=1)
    path = directory / shard_name(0, 1) / file
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    messages = []
    for place in [0, 7, 8, len(whole) - 5, *rng.integers(0, len(whole), 60).tolist()]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :])
        with pytest.raises(InputError, match=f"{file}: its sha256"):
            MemoryStore.open(directory, verify=True)
        try:
            store = MemoryStore.open(directory)
            store.records(store.row_ids)
            store.memory(store.row_ids)
            store.keys()
        except InputError as error:
            messages.append(str(error))
    assert len(messages) >= 2
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 40,
        (2).to_bytes(8, "little") + b"[]",
        (60).to_bytes(8, "little") + b'{"key":{"dtype":"F16","shape":[9],"data_offsets":[0,18]}}    ',
    ],
)
def test_a_file_that_is_no_memory_is_reported(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "memory.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="not a memory file"):
        map_tensors(tmp_path / "memory.safetensors")


def test_shapes_are_checked_against_the_manifest(tmp_path: Path) -> None:
    directory = write_version(tmp_path / "memory")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["fingerprint_fields"]["hidden_size"] = D + 1
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"memory is \[\d+, {M}, {D}\], expected \[rows, {M}, {D + 1}\]"):
        MemoryStore.open(directory).memory([CHUNKS[0].row_id])


def test_a_finished_shard_is_known_by_its_plan_and_bytes(tmp_path: Path) -> None:
    report = write_shard(tmp_path, "s", CHUNKS, MEMORY, KEYS, "float16")
    plan = plan_hash(CHUNKS, fingerprint="f", codec="float16", batch_tokens=64)
    assert finished_report(tmp_path, "s", plan) is None
    write_plan(tmp_path, "s", plan, report)
    assert finished_report(tmp_path, "s", plan) == report
    assert plan == plan_hash(CHUNKS[::-1], fingerprint="f", codec="float16", batch_tokens=64)
    for changed in (
        plan_hash(CHUNKS[1:], fingerprint="f", codec="float16", batch_tokens=64),
        plan_hash(
            [replace(CHUNKS[0], document_id="other"), *CHUNKS[1:]], fingerprint="f", codec="float16", batch_tokens=64
        ),
        plan_hash(CHUNKS, fingerprint="g", codec="float16", batch_tokens=64),
        plan_hash(CHUNKS, fingerprint="f", codec="int8", batch_tokens=64),
        plan_hash(CHUNKS, fingerprint="f", codec="float16", batch_tokens=65),
    ):
        assert finished_report(tmp_path, "s", changed) is None
    with open(tmp_path / "s" / "memory.safetensors", "r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert finished_report(tmp_path, "s", plan) is None


def test_a_copy_is_the_same_version(tmp_path: Path) -> None:
    directory = write_version(tmp_path / "memory")
    shutil.copytree(directory, tmp_path / "copy")
    again = write_version(tmp_path / "again")
    hashes = {MemoryStore.open(d).hash for d in (directory, tmp_path / "copy", again)}
    assert len(hashes) == 1
    assert sha256_file(directory / shard_name(2, 4) / "memory.safetensors") == sha256_file(
        again / shard_name(2, 4) / "memory.safetensors"
    )
