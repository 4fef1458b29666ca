"""Compressing many chunks: batches, poisoned texts, keys whose inner product is the cosine, and a MEMORY made again."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clara.data.records import Chunk, chunk_id, input_text, row_id
from clara.errors import InputError
from clara.memory.batches import plan_batches, tight_batches
from clara.memory.compress import Encoding, compress_chunks, encode_chunks, make_codebook, write_memory_shard
from clara.memory.fingerprint import EncodingSettings, Fingerprint, of_model
from clara.memory.keys import key_projection
from clara.memory.product_quantiser import load_codebook
from clara.memory.reencode import reencode, reencode_shard
from clara.memory.shards import shard_name
from clara.memory.store import MemoryStore, complete_memory
from clara.model.model import ClaraModel
from clara.processes import torch_threads
from tests.helpers.fuzz import examples

FINGERPRINT = Fingerprint("b", "c", "t", "float32", 4, 32, "none", True, 96, 0, 64, 0)


class WordHashes:
    """A fake compressor: memory is seeded by the words; texts with POISON or BURST can't be compressed."""

    num_memory_tokens, hidden_size = 4, 32

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift
        self.batches: list[int] = []

    def document_ids(self, text: str) -> list[int]:
        if "UNREADABLE" in text:
            raise ValueError("no such character")
        return [
            {"POISON": 1, "BURST": 2}.get(word) or int(hashlib.sha256(word.encode()).hexdigest()[:6], 16) + 3
            for word in text.split()
        ]

    def compress(self, texts: Sequence[Sequence[int]]) -> Tensor:
        self.batches.append(len(texts))
        if any(1 in text for text in texts):
            raise RuntimeError("poisoned")
        rows = [
            torch.randn(4, 32, generator=torch.Generator().manual_seed(sum(text) % 2**31)) + self.shift
            for text in texts
        ]
        memory = torch.stack(rows)
        memory[[2 in text for text in texts]] = float("nan")
        return memory


def chunk(number: int, extra: str = "") -> Chunk:
    text = " ".join(f"w{number * 31 + i}" for i in range(1 + number * 7 % 23)) + extra
    identity = chunk_id("", text)
    return Chunk(
        row_id(identity), identity, f"d{number}", "", text, 0, len(text), len(text.split()), False, "corpus.jsonl"
    )


CHUNKS = [chunk(number) for number in range(40)]


@given(
    lengths=st.lists(st.integers(1, 50), max_size=60).map(sorted), budget=st.integers(1, 300), extra=st.integers(0, 5)
)
@settings(max_examples=examples(150), deadline=None)
def test_batches_partition_the_rows_within_the_budget(lengths: list[int], budget: int, extra: int) -> None:
    batches = list(plan_batches(lengths, budget, extra))
    assert [row for batch in batches for row in batch] == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or (lengths[batch[-1]] + extra) * len(batch) <= budget
    for batch, following in itertools.pairwise(batches):
        assert (lengths[following[0]] + extra) * (len(batch) + 1) > budget


def batch_cost(lengths: list[int], batches: Sequence[range], budget: int, extra: int) -> int:
    return sum((lengths[batch[-1]] + extra) * len(batch) + max(1, budget // 128) for batch in batches)


def ways_to_batch(lengths: list[int], budget: int, extra: int, begin: int = 0) -> Iterator[list[range]]:
    if begin == len(lengths):
        yield []
    for end in range(begin + 1, len(lengths) + 1):
        if end == begin + 1 or (lengths[end - 1] + extra) * (end - begin) <= budget:
            yield from ([range(begin, end), *rest] for rest in ways_to_batch(lengths, budget, extra, end))


@given(
    lengths=st.lists(st.integers(1, 50), max_size=9).map(sorted), budget=st.integers(1, 2000), extra=st.integers(0, 5)
)
@settings(max_examples=examples(150), deadline=None)
def test_no_way_to_batch_costs_less_than_the_tight_one(lengths: list[int], budget: int, extra: int) -> None:
    found = tight_batches(lengths, budget, extra)
    ways = list(ways_to_batch(lengths, budget, extra))
    assert found in ways
    assert batch_cost(lengths, found, budget, extra) == min(batch_cost(lengths, way, budget, extra) for way in ways)


@pytest.mark.parametrize("rows", [128, 256, 1024])
def test_padding_is_under_three_percent_at_the_sizes_of_default_shards(rows: int) -> None:
    # As long as summaries of encyclopaedia articles: log-normal, cut at the chunk size.
    drawn = np.random.default_rng(0).lognormal(4.6, 0.5, (2048 // rows, rows)).astype(int).clip(8, 256)
    real = padded = 0
    for shard in np.sort(drawn).tolist():
        for batch in tight_batches(shard, 4096, 19):
            real += sum(shard[row] + 19 for row in batch)
            padded += (shard[batch[-1]] + 19) * len(batch)
    assert 1 - real / padded < 0.03


def test_memory_keeps_the_given_order() -> None:
    one_by_one = np.concatenate([encode_chunks(WordHashes(), [c], batch_tokens=1) for c in CHUNKS])
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(CHUNKS))
        assert np.array_equal(
            encode_chunks(WordHashes(), [CHUNKS[i] for i in order], batch_tokens=90), one_by_one[order]
        )


def test_the_real_model_gives_each_chunk_its_own_memory(tiny_model: ClaraModel) -> None:
    together = encode_chunks(tiny_model, CHUNKS, batch_tokens=400)
    alone = np.stack(
        [tiny_model.compress([tiny_model.document_ids(input_text(c.title, c.text))])[0].numpy() for c in CHUNKS]
    )
    assert np.abs(together - alone).max() < 1e-4
    shuffled = np.random.default_rng(0).permutation(len(CHUNKS))
    assert np.array_equal(
        encode_chunks(tiny_model, [CHUNKS[i] for i in shuffled], batch_tokens=400), together[shuffled]
    )


@pytest.mark.parametrize(
    ("poison", "reason"), [(" POISON", "poisoned"), (" BURST", "not finite"), (" UNREADABLE", "no such character")]
)
def test_only_the_poisoned_chunk_is_lost(poison: str, reason: str) -> None:
    bad = [chunk(100, poison), chunk(101, poison)]
    chunks = [*CHUNKS[:11], bad[0], *CHUNKS[11:], bad[1]]
    memory, failures = compress_chunks(WordHashes(), chunks, batch_tokens=300)
    assert np.array_equal(memory, encode_chunks(WordHashes(), CHUNKS, batch_tokens=300))
    assert [failure.chunk for failure in failures] == bad
    assert all(reason in failure.reason for failure in failures)
    with pytest.raises(InputError, match=f"chunk {bad[0].chunk_id}"):
        encode_chunks(WordHashes(), chunks, batch_tokens=300)


def test_a_broken_model_is_not_blamed_on_the_texts() -> None:
    class Broken(WordHashes):
        def compress(self, texts: Sequence[Sequence[int]]) -> Tensor:
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        compress_chunks(Broken(), CHUNKS, batch_tokens=300)


# --- keys ------------------------------------------------------------------------------------------------------------


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def pairs(num: int, num_slots: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of memories with a shared part, slots of unequal norm."""
    rng = np.random.default_rng(0)
    a, noise = rng.standard_normal((2, num, num_slots, size)).astype(np.float32)
    share = np.linspace(-1, 1, num, dtype=np.float32)[:, None, None]
    scale = np.linspace(0.5, 1.5, num_slots, dtype=np.float32)[:, None]
    return a * scale, (share * a + (1 - np.abs(share)) * noise) * scale


def test_keys_of_full_size_give_the_cosine_exactly() -> None:
    a, b = pairs(50, 3, 8)
    projection = key_projection(3, 8, 24, seed=5)
    assert np.allclose((projection.keys(a) * projection.keys(b)).sum(1), cosines(a, b), atol=1e-5)


@pytest.mark.parametrize("key_size", [6, 11, 16])
def test_keys_give_the_cosine_in_expectation(key_size: int) -> None:
    a, b = pairs(20, 3, 8)
    num_seeds = 1500
    products = []
    for seed in range(num_seeds):
        projection = key_projection.__wrapped__(3, 8, key_size, seed)
        products.append((projection.keys(a) * projection.keys(b)).sum(1))
    products = np.array(products)
    error = products.mean(0) - cosines(a, b)
    standard_error = products.std(0) / np.sqrt(num_seeds)
    assert (np.abs(error) < 5 * standard_error + 1e-6).all()


def test_keys_ignore_scale_and_take_zeros() -> None:
    a, _ = pairs(10, 3, 8)
    projection = key_projection(3, 8, 12, seed=0)
    assert np.allclose(projection.keys(a), projection.keys(1000 * a), atol=1e-6)
    assert np.array_equal(projection.keys(np.zeros((2, 3, 8), np.float32)), np.zeros((2, 12), np.float32))
    assert np.array_equal(projection.keys(torch.from_numpy(a)), projection.keys(a))


def test_keys_depend_on_the_seed_and_stay_what_they_were() -> None:
    projection = key_projection(2, 4, 4, seed=0)
    assert not np.allclose(projection.frames[0], key_projection(2, 4, 4, seed=1).frames[0])
    # Golden: a store's keys must mean the same in every later version.
    assert np.allclose(
        projection.keys(np.arange(8, dtype=np.float32).reshape(1, 2, 4)),
        [[0.31082627, -0.04853512, 1.061427, 0.64006007]],
        atol=1e-5,
    )


@pytest.mark.parametrize("key_size", [2, 25])
def test_a_key_size_that_cannot_be_is_refused(key_size: int) -> None:
    with pytest.raises(InputError, match=f"key_size is {key_size}, expected M ≤ key_size ≤ M·D, here 3 to 24"):
        key_projection(3, 8, key_size, 0)


# --- shards and versions ---------------------------------------------------------------------------------------------


def build(
    directory: Path, model: WordHashes | ClaraModel, fingerprint: Fingerprint, num_shards: int = 4
) -> MemoryStore:
    reports = []
    for shard in range(num_shards):
        chunks = [c for c in CHUNKS if c.row_id % num_shards == shard]
        name = shard_name(shard, num_shards)
        encoding = Encoding(fingerprint, "float16", 200)
        reports.append(write_memory_shard(lambda: model, chunks, directory, name, encoding))
    complete_memory(
        directory, reports, fingerprint=fingerprint, codec="float16", num_shards=num_shards, recipe={}, counts={}
    )
    return MemoryStore.open(directory, [fingerprint])


def test_a_finished_shard_is_not_compressed_again_and_failures_are_remembered(tmp_path: Path) -> None:
    chunks = [*CHUNKS[:8], chunk(100, " POISON")]
    model = WordHashes()
    encoding = Encoding(FINGERPRINT, "int8", 200)
    first = write_memory_shard(lambda: model, chunks, tmp_path, "s", encoding)
    num_batches = len(model.batches)
    second = write_memory_shard(lambda: model, chunks[::-1], tmp_path, "s", encoding)
    assert len(model.batches) == num_batches
    assert second == {**first, "reused": True}
    assert (first["rows"], [f["chunk_id"] for f in first["failures"]]) == (8, [chunks[-1].chunk_id])
    third = write_memory_shard(lambda: model, chunks[:-2], tmp_path, "s", encoding)
    assert (third["reused"], third["rows"]) == (False, 7)


def test_reencoding_equals_a_build_with_the_new_compressor(tmp_path: Path) -> None:
    new = replace(FINGERPRINT, compressor="new")
    old_store = build(tmp_path / "old", WordHashes(), FINGERPRINT)
    expected = build(tmp_path / "expected", WordHashes(shift=0.5), new)
    seen: list[tuple[int, int]] = []
    manifest = reencode(
        old_store,
        WordHashes(shift=0.5),
        tmp_path / "new",
        fingerprint=new,
        batch_tokens=200,
        progress=lambda *now: seen.append(now),
    )
    store = MemoryStore.open(tmp_path / "new", [new], verify=True)
    assert manifest["parent"] == old_store.hash
    assert np.array_equal(store.row_ids, expected.row_ids)
    assert np.array_equal(store.memory(store.row_ids), expected.memory(store.row_ids))
    assert np.array_equal(store.keys(), expected.keys())
    assert store.records(store.row_ids) == old_store.records(old_store.row_ids)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("codec", ["int8", "int4", "pq4"])
def test_reencoding_keeps_the_codec_and_trains_another_codebook(tmp_path: Path, codec: str) -> None:
    chunks = [chunk(number) for number in range(130)]
    codebook, extra = (
        make_codebook(WordHashes, chunks, tmp_path / "old", Encoding(FINGERPRINT, codec, 200)),
        None,
    )
    if codebook:
        extra = load_codebook(tmp_path / "old", 4, FINGERPRINT.hidden_size)
    settings = {"fingerprint": FINGERPRINT, "codec": codec}
    encoding = Encoding(FINGERPRINT, codec, 200, extra)
    reports = [write_memory_shard(WordHashes, chunks, tmp_path / "old", shard_name(0, 1), encoding)]
    complete_memory(
        tmp_path / "old",
        reports,
        **settings,
        num_shards=1,
        recipe={},
        counts={},
        extra_files=[codebook] if codebook else [],
    )
    store = MemoryStore.open(tmp_path / "old", verify=True)
    new = replace(FINGERPRINT, compressor="new")
    manifest = reencode(store, WordHashes(shift=0.5), tmp_path / "new", fingerprint=new, batch_tokens=200)
    fresh = MemoryStore.open(tmp_path / "new", [new], verify=True)
    assert (manifest["codec"], fresh.codec) == (codec, codec)
    exact = encode_chunks(WordHashes(shift=0.5), store.records(store.row_ids), batch_tokens=200)
    error = np.abs(fresh.memory(fresh.row_ids) - exact).mean()
    assert error < {"int8": 0.01, "int4": 0.1, "pq4": 0.35}[codec] * np.abs(exact).mean()
    assert error < np.abs(store.memory(store.row_ids) - exact).mean()
    if store.codebook and fresh.codebook:
        assert store.codebook.hash != fresh.codebook.hash
    assert reencode(store, WordHashes(shift=0.5), tmp_path / "new", fingerprint=new, batch_tokens=200) == manifest


def test_reencoding_goes_on_where_it_stood(tmp_path: Path) -> None:
    new = replace(FINGERPRINT, compressor="new")
    store = build(tmp_path / "old", WordHashes(), FINGERPRINT)
    model = WordHashes(shift=0.5)
    for shard in range(3):
        reencode_shard(store, shard, lambda: model, tmp_path / "new", Encoding(new, store.codec, 200))
    num_batches = len(model.batches)
    with pytest.raises(InputError, match="no finished MEMORY"):
        MemoryStore.open(tmp_path / "new")
    manifest = reencode(store, model, tmp_path / "new", fingerprint=new, batch_tokens=200)
    last = sum(model.batches[num_batches:])
    assert last == int((store.row_ids % 4 == 3).sum())
    assert reencode(store, model, tmp_path / "new", fingerprint=new, batch_tokens=200) == manifest


def test_reencoding_refuses_what_could_not_be_switched_to(tmp_path: Path) -> None:
    store = build(tmp_path / "old", WordHashes(), FINGERPRINT)
    with pytest.raises(InputError, match="max_tokens: 96 stored, 128 now"):
        reencode(
            store, WordHashes(), tmp_path / "new", fingerprint=replace(FINGERPRINT, max_tokens=128), batch_tokens=200
        )
    with pytest.raises(InputError, match="is the MEMORY that is re-encoded"):
        reencode(store, WordHashes(), tmp_path / "old", fingerprint=FINGERPRINT, batch_tokens=200)


def test_a_version_without_every_row_is_refused(tmp_path: Path) -> None:
    class Poisoned(WordHashes):
        def document_ids(self, text: str) -> list[int]:
            return [1] if text == CHUNKS[0].text else super().document_ids(text)

    store = build(tmp_path / "old", WordHashes(), FINGERPRINT)
    with pytest.raises(InputError, match=f"1 rows not compressed, first {CHUNKS[0].chunk_id}: RuntimeError: poisoned"):
        reencode(store, Poisoned(), tmp_path / "new", fingerprint=FINGERPRINT, batch_tokens=200)
    assert not (tmp_path / "new" / "manifest.json").exists()


def test_the_real_model_reencodes_after_a_change_of_its_compressor(tiny_model: ClaraModel, tmp_path: Path) -> None:
    settings = EncodingSettings(max_tokens=96, overlap_tokens=0, key_size=64, key_seed=0)
    store = build(tmp_path / "old", tiny_model, of_model(tiny_model, settings))
    with torch.no_grad():
        tiny_model.role_parameters("compressor")[0].add_(0.1)
    changed = of_model(tiny_model, settings)
    reencode(store, tiny_model, tmp_path / "new", fingerprint=changed, batch_tokens=200)
    fresh = MemoryStore.open(tmp_path / "new", [changed])
    with pytest.raises(InputError, match="compressor: expected"):
        MemoryStore.open(tmp_path / "old", [changed])
    difference = np.abs(fresh.memory(fresh.row_ids) - store.memory(store.row_ids)).max()
    assert difference > 0.01


def test_torch_keeps_one_thread_until_the_last_of_several_leaves() -> None:
    torch.set_num_threads(2)
    try:
        first, second = ExitStack(), ExitStack()
        first.enter_context(torch_threads(1))
        second.enter_context(torch_threads(1))
        first.close()
        assert torch.get_num_threads() == 1
        second.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
