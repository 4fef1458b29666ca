"""Codecs of a MEMORY: how far values err, and which they refuse."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clara.arrays import Floats
from clara.errors import InputError
from clara.memory.codec import CODECS, GROUP, check_memory, decode_memory, encode_memory, layout
from clara.memory.product_quantiser import sample_rows, train_codebook
from tests.helpers.fuzz import examples

M, D = 3, 8
MEMORY = np.random.default_rng(0).standard_normal((25, M, D)).astype(np.float32)


@given(
    arrays(np.float32, st.tuples(st.integers(0, 4), st.just(M), st.just(D)), elements=st.floats(-1e6, 1e6, width=32))
)
@settings(max_examples=examples(60), deadline=None)
def test_int8_errs_by_half_a_step_at_most(memory: Floats) -> None:
    stored = encode_memory(memory, "int8")
    assert stored["memory"].dtype == np.int8
    step = np.abs(memory).max(axis=-1, keepdims=True, initial=0.0) / 127
    assert (np.abs(decode_memory(stored, "int8", D) - memory) <= step * 0.5 * (1 + 1e-4) + 1e-35).all()


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_stores_what_its_layout_says_and_reads_it_back(name: str) -> None:
    codec = CODECS[name]
    memory = np.random.default_rng(3).standard_normal((200, 2, 20)).astype(np.float32)
    codebook = train_codebook(memory, codec.codebook_width) if codec.has_codebook else None
    stored = encode_memory(memory, name, codebook)
    assert {tensor: (a.dtype, a.shape[1:]) for tensor, a in stored.items()} == layout(name, 2, 20)
    decoded = decode_memory(stored, name, 20, codebook)
    assert decoded.shape == memory.shape
    assert decoded.dtype == np.float32
    # Product quantisation keeps the least: a byte for every 8 numbers.
    assert np.square(decoded - memory).mean() < np.square(memory).mean() * (1.0 if codec.has_codebook else 0.02)
    if np.isfinite(codec.limit):
        with pytest.raises(InputError, match=f"{name} ends at {codec.limit:.0f}"):
            check_memory(np.full((1, 2, 20), 1.01 * codec.limit, np.float32), name)


def test_float16_is_numpys_rounding() -> None:
    assert np.array_equal(
        decode_memory(encode_memory(MEMORY, "float16"), "float16", D), MEMORY.astype(np.float16).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("value", "codec", "message"),
    [
        (1e5, "float16", "float16 ends at 65504"),
        (np.nan, "int8", "not finite"),
        (np.inf, "float16", "not finite"),
        (1.0, "int3", "expected one of"),
        (5e5, "int4", "int4 ends at 458528; use codec int8"),
        (1.0, "pq8", "needs the codebook"),
    ],
)
def test_a_codec_refuses_what_it_cannot_hold(value: float, codec: str, message: str) -> None:
    memory = np.full((1, M, D), value, np.float32)
    with pytest.raises(InputError, match=message):
        encode_memory(memory, codec)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.just(2), st.sampled_from([1, 8, 63, 65, 130])),
        elements=st.floats(-1e5, 1e5, width=32),
    )
)
@settings(max_examples=examples(60), deadline=None)
def test_int4_errs_by_half_a_step_of_its_group_at_most(memory: Floats) -> None:
    stored = encode_memory(memory, "int4")
    size = memory.shape[2]
    assert {name: (a.dtype, a.shape[1:]) for name, a in stored.items()} == layout("int4", 2, size)
    decoded = decode_memory(stored, "int4", size)
    for begin in range(0, size, GROUP):
        part = slice(begin, begin + GROUP)
        step = np.abs(memory[..., part]).max(axis=-1, keepdims=True, initial=0.0) / 7
        # A scale in float16 is off by 2^-11, and nothing under 6e-8 is one.
        assert (np.abs(decoded[..., part] - memory[..., part]) <= step * (0.5 + 7 * 2**-11) + 7 * 6e-8).all()


def test_int4_packs_two_numbers_in_a_byte() -> None:
    stored = encode_memory(np.array([[[7, -7, 3.4, 0, -1]]], np.float32), "int4")
    assert stored["scale"].tolist() == [[[1.0]]]
    assert stored["memory"].tolist() == [[[15 | 1 << 4, 11 | 8 << 4, 7 | 8 << 4]]]
    assert decode_memory(stored, "int4", 5).tolist() == [[[7, -7, 3, 0, -1]]]


@pytest.mark.parametrize(("width", "size"), [(4, 8), (8, 20)])
def test_each_piece_becomes_the_centroid_nearest_to_it(width: int, size: int) -> None:
    memory = np.random.default_rng(4).standard_normal((150, 2, size)).astype(np.float32) * 30
    memory[3, 1] = 0
    codebook = train_codebook(memory, width)
    codec = f"pq{width}"
    stored = encode_memory(memory, codec, codebook)
    assert {name: (a.dtype, a.shape[1:]) for name, a in stored.items()} == layout(codec, 2, size)
    decoded = decode_memory(stored, codec, size, codebook)
    pieces = -(-size // width)
    for row, token in [(0, 0), (3, 1), (149, 1)]:
        scale = np.sqrt(np.mean(memory[row, token] ** 2)) or 1.0
        unit = np.zeros(pieces * width, np.float32)
        unit[:size] = memory[row, token] / scale
        nearest = [
            codebook.centroids[s][np.argmin(((codebook.centroids[s] - unit[s * width : (s + 1) * width]) ** 2).sum(-1))]
            for s in range(pieces)
        ]
        assert np.allclose(decoded[row, token], np.concatenate(nearest)[:size] * scale, atol=1e-4)
    quantiser = faiss.ProductQuantizer(pieces * width, pieces, 8)
    faiss.copy_array_to_vector(codebook.centroids.ravel(), quantiser.centroids)
    by_faiss = quantiser.decode(stored["memory"].reshape(-1, pieces))[:, :size] * stored["scale"].reshape(-1, 1)
    assert np.allclose(decoded.reshape(-1, size), by_faiss, atol=1e-5)


def test_training_is_repeatable_and_lessens_the_error() -> None:
    rng = np.random.default_rng(5)
    memory = (rng.standard_normal((400, 1, 1)) * rng.standard_normal((400, 2, 8))).astype(np.float32)
    assert train_codebook(memory, 4).hash == train_codebook(memory, 4).hash
    errors = {}
    for codec in ("pq8", "pq4", "int4", "int8"):
        codebook = train_codebook(memory, int(codec[2:])) if codec.startswith("pq") else None
        errors[codec] = float(
            np.square(decode_memory(encode_memory(memory, codec, codebook), codec, 8, codebook) - memory).mean()
        )
    assert errors["int8"] < errors["int4"]
    assert errors["pq4"] < errors["pq8"] < 0.5 * float(np.square(memory).mean())


def test_a_codebook_needs_as_many_memory_tokens_as_centroids() -> None:
    with pytest.raises(InputError, match="codec pq4: 254 memory tokens to train on, expected at least 256"):
        train_codebook(np.ones((127, 2, D), np.float32), 4)


def test_the_sample_is_of_the_rows_alone() -> None:
    rows = list(range(40_000))
    sample = sample_rows(rows, 32)
    assert len(sample) == 512
    assert sample == sample_rows(rows[::-1], 32) == sorted(set(sample))
    assert set(sample_rows(rows[:20_000], 32)) >= {row for row in sample if row < 20_000}
    assert 18_000 < np.mean(sample) < 22_000
