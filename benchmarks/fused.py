"""Search with all sources: latency of each source alone and of the fused score, build time, bytes per row.

python -m benchmarks.fused --rows 1000000 --folder DIR --dense-model FOLDER

Texts are those of benchmarks/words.py; memory is random, 8 tokens of 64 numbers in int8, and dense vectors are random
unit vectors of the model's size in float16, so that the model embeds questions only. INDEX has the words, and slot-mean
keys of the memory. Latency is that of questions whose query vectors are there; each search returns 20 rows.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import RESULTS, environment, save
from benchmarks.watched_process import Watched
from benchmarks.words import FOUND, NUM_QUESTIONS, QUESTION_WORDS, draw_texts, make_memory
from clara.config.model import FeatureName, Fusion, Score
from clara.config.tree import Retrieval
from clara.errors import command_line
from clara.index.embedding import DenseEncoder
from clara.index.parts import files_of
from clara.index.search import KIND, MemoryIndex
from clara.index.words import NAME as WORDS
from clara.memory.store import MemoryStore
from clara.retrieval.bm25 import Bm25
from clara.retrieval.dense import DenseRanker
from clara.retrieval.fused import FusedRanker
from clara.retrieval.memory_ranker import MemoryRanker
from clara.retrieval.ranker import Queries, Ranker
from clara.storage.artefact import Artefact

SHAPE = (8, 64)
BATCHES = (1, 32)
_BLOCK = 65_536


def dense_vectors(path: Path, rows: int, size: int) -> np.ndarray:
    """Random unit vectors `[rows, size]` in float16, mapped; made unless they are there."""
    if not path.is_file():
        rng = np.random.default_rng(2)
        found = np.lib.format.open_memmap(path, "w+", np.float16, (rows, size))
        for begin in range(0, rows, _BLOCK):
            block = rng.standard_normal((min(_BLOCK, rows - begin), size), np.float32)
            found[begin : begin + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return np.load(path, mmap_mode="r")


def rankers(folder: Path, encoder: DenseEncoder, rows: int) -> tuple[dict[FeatureName, Ranker], MemoryStore]:
    """Every source over the same rows."""
    store = MemoryStore.open(folder / "memory")
    index = MemoryIndex.open(folder / "index", store, Score())
    size = int(encoder.description()["size"])
    assert index.artefact is not None
    return {
        "memory": MemoryRanker(index, Retrieval().first_level),
        "bm25": Bm25.open(index.artefact, store),
        "dense": DenseRanker(store.row_ids, dense_vectors(folder / "dense.npy", rows, size), encoder),
    }, store


def latency(rank: Callable[[Queries], object], queries: Queries) -> dict[str, dict[str, float]]:
    """Milliseconds of a batch: median and 95th percentile."""
    found = {}
    rank(part(queries, 0, 1))
    for batch in BATCHES:
        seconds = []
        for begin in range(0, len(queries.texts), batch):
            own = part(queries, begin, begin + batch)
            began = time.monotonic()
            rank(own)
            seconds.append(time.monotonic() - began)
        found[f"batch_{batch}"] = {
            "median_ms": 1000 * statistics.median(seconds),
            "p95_ms": 1000 * float(np.quantile(seconds, 0.95)),
        }
    return found


def part(queries: Queries, begin: int, end: int) -> Queries:
    """Some of the queries."""
    assert queries.vectors is not None
    return Queries(queries.texts[begin:end], queries.excluded[begin:end], queries.vectors[begin:end])


def as_markdown(found: dict[str, Any]) -> str:
    """A report of the figures."""
    lines = [
        f"# Search with all sources, {found['rows']:,} rows",
        "",
        f"Command: `{found['environment']['command']}`",
        "",
    ]
    build = found["build"]
    lines += [
        f"INDEX with words and keys: {build['seconds']:.0f} s, peak {build['peak_bytes'] / 2**20:,.0f} MiB. "
        f"Load average {found['environment']['load_average']}.",
        "",
        "| source | bytes per row | batch 1, median ms (p95) | batch 32, median ms (p95) |",
        "|---|---|---|---|",
    ]
    for name, of in found["latency"].items():
        cells = [f"{of[f'batch_{b}']['median_ms']:.1f} ({of[f'batch_{b}']['p95_ms']:.1f})" for b in BATCHES]
        size = found["bytes_per_row"].get(name)
        lines.append(f"| {name} | {'' if size is None else f'{size:.0f}'} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, ""])


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused", description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000, help="texts (default: %(default)s)")
    add("--folder", required=True, metavar="DIR", help="for data: about 4 GB for a million rows")
    add("--dense-model", required=True, metavar="FOLDER", help="sentence-transformers folder, which embeds questions")
    add("--limit-seconds", type=float, default=3600.0, help="longest time of the build (default: %(default)s)")
    add("--results", type=Path, default=RESULTS / "fused", metavar="DIR", help="for the report")
    options = parser.parse_args(argv)
    folder = Path(options.folder) / str(options.rows)
    folder.mkdir(parents=True, exist_ok=True)
    make_memory(folder / "memory", options.rows, SHAPE)
    command = [sys.executable, "-m", "pipelines.build_index", "--memory", str(folder / "memory")]
    command += ["--output", str(folder / "index"), "--queries", "0", "--no-verify", "--quiet"]
    build = Watched(command, folder / "log.txt", options.limit_seconds, 1).figures()
    encoder = DenseEncoder(options.dense_model)
    sources, store = rankers(folder, encoder, options.rows)
    questions = draw_texts(np.random.default_rng(1), NUM_QUESTIONS, QUESTION_WORDS)
    vectors = torch.randn(NUM_QUESTIONS, *SHAPE, generator=torch.Generator().manual_seed(1))
    queries = Queries(questions, [()] * NUM_QUESTIONS, vectors)
    weights = Fusion(weights={"memory": 0.5, "bm25": 0.5, "dense": 10.0}, dense_model=encoder.hash)
    fused = FusedRanker(sources, weights, store.row_ids, Retrieval(exact_rows=0))
    index = Artefact.open(folder / "index", KIND)
    words = sum(entry["bytes"] for entry in files_of(index, WORDS))
    other = sum(entry["bytes"] for entry in index.manifest["files"]) - words
    found = {
        "environment": environment("benchmarks.fused"),
        "rows": options.rows,
        "build": build,
        "bytes_per_row": {
            "memory": other / options.rows,
            "bm25": words / options.rows,
            "dense": os.path.getsize(folder / "dense.npy") / options.rows,
        },
        "latency": {name: latency(lambda q, r=r: r.rank(q, FOUND), queries) for name, r in sources.items()}
        | {"fused": latency(lambda q: fused.hits(q, FOUND), queries)},
    }
    given = shlex.join(["DIR" if part in (options.folder, options.dense_model) else part for part in argv])
    found["environment"]["command"] = f"python -m benchmarks.fused {given}"
    save(options.results / f"{options.rows // 1000}k-rows", json.loads(json.dumps(found)), as_markdown(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    command_line(main)
