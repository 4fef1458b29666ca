"""An INDEX with all sources: build time and memory, bytes per row, latency of each source alone and of the fused score.

python -m benchmarks.fused --rows 1000000 --folder DIR --dense-model FOLDER

Texts are those of benchmarks/words.py. Memory is random, 2 tokens of 576 numbers in int8, and is searched by centred
slot means: keys of 576 numbers. Dense vectors of rows are random, of the model's size; the model embeds the questions
alone, as embedding a million texts takes hours whatever the INDEX is. One process builds the INDEX by the code that
`pipelines.build_index` calls, another opens it and searches; query vectors are given, and each search returns 20 rows.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rows import described, rows_folder, rows_parser, save_rows
from benchmarks.watched_process import Watched
from benchmarks.words import FOUND, QUESTION_WORDS, draw_texts, make_memory
from clara.arrays import Ids
from clara.config.model import FeatureName, Fusion, Score
from clara.config.tree import Retrieval
from clara.errors import command_line
from clara.index.build import build_index
from clara.index.dense import NAME as DENSE
from clara.index.embedding import DenseEncoder
from clara.index.search import FILE, KIND, MemoryIndex
from clara.index.words import NAME as WORDS
from clara.memory.store import MemoryStore
from clara.retrieval.bm25 import Bm25
from clara.retrieval.dense import DenseRanker
from clara.retrieval.fused import FusedRanker
from clara.retrieval.memory_ranker import MemoryRanker
from clara.retrieval.ranker import Queries, Ranker
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write

SHAPE, SLOT_MEAN = (2, 576), Score(pooling="slot_mean", centred=True)
BATCHES, AIM_BYTES = (1, 32), 4 * 10**9
SOURCES = {"memory": FILE, "bm25": WORDS, "dense": DENSE}
"""File or folder of each source in an INDEX, in the order in which they are built."""


class RandomRows(DenseEncoder):
    """A model whose vectors of rows are random, drawn by the row; it reads their texts, and embeds questions itself."""

    def embed_rows(self, store: MemoryStore, rows: Ids, *, shown: bool = False) -> torch.Tensor:
        """See the base class."""
        store.records(rows)
        size = int(self.description()["size"])
        rng = np.random.default_rng(abs(int(rows[0])))
        return torch.from_numpy(rng.standard_normal((len(rows), size), np.float32))


def build(folder: Path, dense_model: str, factory: str = "auto") -> dict[str, Any]:
    """Build the INDEX: its kind, and the bytes and the seconds of each source."""
    output, began = folder / "index", time.time()
    encoder = RandomRows(dense_model)
    manifest = build_index(folder / "memory", output, factory, num_queries=0, score=SLOT_MEAN, dense=encoder)
    size, seconds = {}, {}
    for name, place in SOURCES.items():
        files = [path for path in [output / place, *(output / place).glob("*")] if path.is_file()]
        size[name] = sum(path.stat().st_size for path in files)
        ended = max(path.stat().st_mtime for path in files)  # sources are written one after the other
        seconds[name], began = ended - began, ended
    return {"kind": manifest["factory"], "bytes": size, "seconds_of": seconds}


def open_sources(folder: Path, dense_model: str) -> tuple[dict[FeatureName, Ranker], FusedRanker]:
    """Every source over the same rows, and the fused score of them."""
    store, encoder = MemoryStore.open(folder / "memory"), DenseEncoder(dense_model)
    artefact = Artefact.open(folder / "index", KIND)
    index = MemoryIndex.open(artefact, store, SLOT_MEAN)
    sources: dict[FeatureName, Ranker] = {
        "memory": MemoryRanker(index, Retrieval().first_level),
        "bm25": Bm25.open(artefact, store),
        "dense": DenseRanker.open(artefact, store, encoder),
    }
    weights = Fusion(weights={"memory": 0.5, "bm25": 0.5, "dense": 10.0}, dense_model=encoder.hash)
    return sources, FusedRanker(sources, weights, store.row_ids, Retrieval(exact_rows=0))


def search(folder: Path, dense_model: str, number: str = "64") -> dict[str, Any]:
    """Milliseconds of a search by each source alone and by the fused score, for so many questions."""
    began = time.monotonic()
    sources, fused = open_sources(folder, dense_model)
    opened = time.monotonic() - began
    questions = draw_texts(np.random.default_rng(1), int(number), QUESTION_WORDS)
    vectors = torch.randn(len(questions), *SHAPE, generator=torch.Generator().manual_seed(1))
    queries = Queries(questions, [()] * len(questions), vectors)
    rankers: dict[str, Ranker] = {**sources, "fused": fused}
    found = {name: latency(partial(ranker.rank, k=FOUND), queries) for name, ranker in rankers.items()}
    return {"questions": len(questions), "open_seconds": opened, "latency": found}


def latency(rank: Callable[[Queries], object], queries: Queries) -> dict[str, dict[str, float]]:
    """Milliseconds of a batch, by its size: median and 95th percentile."""
    found = {}
    rank(queries.part(0, 1))
    for batch in BATCHES:
        seconds = []
        for begin in range(0, len(queries.texts), batch):
            part = queries.part(begin, begin + batch)
            began = time.monotonic()
            rank(part)
            seconds.append(time.monotonic() - began)
        found[str(batch)] = {
            "median_ms": 1000 * statistics.median(seconds),
            "p95_ms": 1000 * float(np.quantile(seconds, 0.95)),
        }
    return found


def as_markdown(found: dict[str, Any]) -> str:
    """A report of the figures."""
    built, searched, rows, mib = found["build"], found["search"], found["rows"], 2**20
    within = "under" if max(built["peak_bytes"], searched["peak_bytes"]) < AIM_BYTES else "beyond"
    lines = [
        f"# An INDEX with all sources, {rows:,} rows",
        "",
        f"Keys of {SHAPE[1]} numbers ({built['kind']}). {found['hardware']}; load average {found['load_average']}. "
        f"{found['threads']} threads. {found['note']}".strip(),
        "",
        f"Command: `{found['command']}`",
        "",
        f"Built in {built['seconds']:,.0f} s ({built['processor_seconds']:,.0f} s of processor), peak "
        f"{built['peak_bytes'] / mib:,.0f} MiB ({built['peak_own_bytes'] / mib:,.0f} without mapped files). Opened in "
        f"{searched['open_seconds']:.1f} s; searching peaks at {searched['peak_bytes'] / mib:,.0f} MiB "
        f"({searched['peak_own_bytes'] / mib:,.0f}). Both are {within} {AIM_BYTES / 1e9:.0f} GB.",
        "",
        "| source | build s | bytes per row | one question, median ms (p95) | 32 questions, median ms (p95) |",
        "|---|---|---|---|---|",
    ]
    for name, of in searched["latency"].items():
        cells = [f"{of[str(b)]['median_ms']:,.1f} ({of[str(b)]['p95_ms']:,.1f})" for b in BATCHES]
        seconds = sum(built["seconds_of"].values()) if name == "fused" else built["seconds_of"][name]
        size = sum(built["bytes"].values()) if name == "fused" else built["bytes"][name]
        lines.append(f"| {name} | {seconds:,.0f} | {size / rows:,.0f} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, ""])


def run_step(folder: Path, step: str, argument: str, options: argparse.Namespace) -> dict[str, Any]:
    """One step in a new process, unless it is done: its figures and those of its process."""
    file = folder / f"fused-{step}.json"
    if not file.is_file():
        command = [sys.executable, "-m", "benchmarks.fused", "--step", step, str(folder), options.dense_model, argument]
        before = os.times()
        watched = Watched(command, folder / "log.txt", options.limit_seconds, options.threads).figures()
        if watched["ended"] != "ok":
            raise SystemExit(f"{step}: {watched['ended']}")
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        figures = json.loads((folder / "step.json").read_text()) | watched | {"processor_seconds": spent}
        atomic_write(file, json.dumps(figures))
    done: dict[str, Any] = json.loads(file.read_text())
    return done


def main(argv: list[str]) -> int:
    """The command line."""
    if argv[:1] == ["--step"]:
        step, place, dense_model, argument = argv[1:]
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        done = (build if step == "build" else search)(Path(place), dense_model, argument)
        atomic_write(Path(place) / "step.json", json.dumps(done))
        return 0
    size = "for data and INDEX: about 6 GB for a million rows"
    parser = rows_parser("benchmarks.fused", __doc__, folder=size, results="fused")
    add = parser.add_argument
    add("--dense-model", required=True, metavar="FOLDER", help="sentence-transformers folder, which embeds questions")
    add("--factory", default="auto", help="FAISS factory string of the keys (default: %(default)s)")
    add("--questions", type=int, default=64, metavar="N", help="questions (default: %(default)s)")
    add("--threads", type=int, default=2, help="of each process (default: %(default)s)")
    options = parser.parse_args(argv)
    folder = rows_folder(options)
    if folder is None:
        return 0
    make_memory(folder / "memory", options.rows, SHAPE)
    asked = {"build": options.factory, "search": str(options.questions)}
    steps = {step: run_step(folder, step, argument, options) for step, argument in asked.items()}
    found = described("benchmarks.fused", argv, options) | {
        "note": " ".join(options.note),
        "threads": options.threads,
        **steps,
    }
    found["command"] = found["command"].replace(options.dense_model, "FOLDER")
    save_rows(options, found, as_markdown(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    command_line(main)
