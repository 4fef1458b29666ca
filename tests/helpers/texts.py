"""MEMORY of random texts, whose vectors do not matter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clara.data.records import Chunk, chunk_id, row_id
from clara.memory.fingerprint import Fingerprint
from clara.memory.shards import shard_name, write_shard
from clara.memory.store import complete_memory
from tests.helpers.memories import D, M, random_memory

WORDS = [f"word{number}" for number in range(60)]


def texts_of(number: int, seed: int = 0) -> list[tuple[str, str]]:
    """Titles and texts: Zipf-like words, some texts without any, some Chinese."""
    rng = np.random.default_rng(seed)
    found = []
    for place in range(number):
        chosen = (rng.pareto(0.7, rng.integers(0, 30)) * 2).astype(int).clip(0, len(WORDS) - 1)
        text = " ".join(WORDS[word] for word in chosen) + " the " + "東京都庁の猫"[: int(rng.integers(0, 6))]
        found.append((f"Title{place}" if place % 3 else "", f"{text} {place}x" if place % 7 else "…" * place))
    return found


def write_texts(directory: Path, texts: Sequence[tuple[str, str]], num_shards: int = 3) -> Path:
    identities = [chunk_id(title, text) for title, text in texts]
    chunks = [Chunk(row_id(i), i, f"document-{n}", *texts[n], 0, 8, 3, False) for n, i in enumerate(identities)]
    fingerprint = Fingerprint("b", "c", "t", "float32", M, D, "none", True, 96, 0, M * D, 0)
    reports = []
    for shard in range(num_shards):
        own = [chunk for chunk in chunks if chunk.row_id % num_shards == shard]
        memory = random_memory(len(own), seed=shard)
        keys = memory.reshape(len(own), -1)
        name = shard_name(shard, num_shards)
        reports.append(write_shard(directory, name, own, memory, keys, "float16", fingerprint=fingerprint.hash))
    counts = {"rows": len(chunks)}
    complete_memory(
        directory, reports, fingerprint=fingerprint, codec="float16", num_shards=num_shards, recipe={}, counts=counts
    )
    return directory
