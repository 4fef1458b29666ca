"""The words part of an INDEX at a million rows: build time, peak memory, bytes per row, search latency.

python -m benchmarks.words --rows 1000000 --folder DIR

Texts of 100 words are drawn from Zipf's law (exponent 1.3); the eight most frequent words, about half of a text, are
stop words. INDEX is built with words and without, each in a new process; a third one opens BM25 and searches.
Vectors are tiny, so that nearly all work is that of the words.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import described, rows_folder, rows_parser, save_rows
from benchmarks.watched_process import Watched
from clara.data.records import Chunk, chunk_id, row_id
from clara.errors import command_line
from clara.index.parts import files_of
from clara.index.search import KIND
from clara.index.words import NAME
from clara.memory.fingerprint import Fingerprint
from clara.memory.shards import shard_name, write_shard
from clara.memory.store import MemoryStore, complete_memory
from clara.retrieval.bm25 import Bm25
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write

TOKENS, WIDTH, SHARD_ROWS = 1, 8, 1000
STOPWORDS = ("the", "of", "and", "in", "to", "a", "is", "was")
NUM_WORDS, EXPONENT, QUESTION_WORDS = 100, 1.3, 10
BATCHES, NUM_QUESTIONS, FOUND = (1, 32), 128, 20


def draw_texts(rng: np.random.Generator, number: int, num_words: int) -> list[str]:
    """Texts of words that are distributed by Zipf's law."""
    ranks = rng.zipf(EXPONENT, (number, num_words))
    return [
        " ".join(STOPWORDS[rank - 1] if rank <= len(STOPWORDS) else f"w{rank}" for rank in text)
        for text in ranks.tolist()
    ]


def make_memory(directory: Path, num_rows: int, shape: tuple[int, int] = (TOKENS, WIDTH)) -> None:
    """MEMORY of that many texts with random vectors of that shape `[M, D]`, unless it is there."""
    if (directory / "manifest.json").is_file():
        return
    width = shape[1]
    fingerprint = Fingerprint("synthetic", "synthetic", "synthetic", "float32", *shape, "none", True, 96, 0, width, 0)
    num_shards, reports = -(-num_rows // SHARD_ROWS), []
    for shard in range(num_shards):
        rng = np.random.default_rng([0, shard])
        number = min(SHARD_ROWS, num_rows - shard * SHARD_ROWS)
        chunks = []
        for text in draw_texts(rng, number, NUM_WORDS):
            identity = chunk_id("", text)
            row = row_id(identity) // num_shards * num_shards + shard  # belongs to this shard
            chunks.append(Chunk(row, identity, identity, "", text, 0, len(text), NUM_WORDS, False))
        memory = rng.standard_normal((number, *shape)).astype(np.float32)
        name = shard_name(shard, num_shards)
        keys = memory[:, 0]
        reports.append(write_shard(directory, name, chunks, memory, keys, "int8", fingerprint=fingerprint.hash))
    counts = {"rows": num_rows}
    complete_memory(
        directory, reports, fingerprint=fingerprint, codec="int8", num_shards=num_shards, recipe={}, counts=counts
    )


def search(folder: Path) -> dict[str, Any]:
    """Open BM25 as training does, and search: seconds of each batch, its median and its 95th percentile."""
    began = time.monotonic()
    store = MemoryStore.open(folder / "memory")
    store_seconds = time.monotonic() - began
    index = Bm25.open(Artefact.open(folder / "index", KIND), store)
    found: dict[str, Any] = {
        "open_memory_seconds": store_seconds,
        "open_words_seconds": time.monotonic() - began - store_seconds,
    }
    questions = draw_texts(np.random.default_rng(1), NUM_QUESTIONS, QUESTION_WORDS)
    index.search(questions, FOUND)
    for batch in BATCHES:
        seconds = []
        for begin in range(0, len(questions), batch):
            began = time.monotonic()
            index.search(questions[begin : begin + batch], FOUND)
            seconds.append(time.monotonic() - began)
        found[f"batch_{batch}"] = {
            "median_ms": 1000 * statistics.median(seconds),
            "p95_ms": 1000 * float(np.quantile(seconds, 0.95)),
        }
    return found | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def build(folder: Path, name: str, limit_seconds: float, *options: str) -> dict[str, Any]:
    """Build INDEX in a new process; its figures."""
    command = [sys.executable, "-m", "pipelines.build_index", "--memory", str(folder / "memory")]
    command += ["--output", str(folder / name), "--factory", "Flat", "--queries", "0", "--no-verify", "--quiet"]
    return Watched([*command, *options], folder / "log.txt", limit_seconds, 1).figures()


def as_markdown(found: dict[str, Any]) -> str:
    """A report of the figures."""
    words, without, searched = found["build"], found["build_without_words"], found["search"]
    rows, mib = found["rows"], 2**20
    lines = [
        f"# Words of an INDEX, {rows:,} rows",
        "",
        f"Texts of {NUM_WORDS} words, vocabulary of {found['vocabulary']:,}. {found['hardware']}; "
        f"load average {found['load_average']}. {found['note']}".strip(),
        "",
        f"Command: `{found['command']}`",
        "",
        "| | with words | without |",
        "|---|---|---|",
        f"| build_index, seconds | {words['seconds']:.0f} | {without['seconds']:.0f} |",
        f"| peak MiB (without mapped files) | {words['peak_bytes'] / mib:,.0f} ({words['peak_own_bytes'] / mib:,.0f}) "
        f"| {without['peak_bytes'] / mib:,.0f} ({without['peak_own_bytes'] / mib:,.0f}) |",
        "",
        f"Words part: {found['bytes'] / mib:,.0f} MiB, {found['bytes'] / rows:.0f} bytes per row.",
        "",
        f"Questions of {QUESTION_WORDS} words, the {FOUND} best rows, one process; opened in "
        f"{searched['open_words_seconds']:.1f} s, peak {searched['peak_bytes'] / mib:,.0f} MiB.",
        "",
        "| batch | median ms | 95th percentile ms |",
        "|---|---|---|",
        *(
            f"| {batch} | {searched[f'batch_{batch}']['median_ms']:.1f} | {searched[f'batch_{batch}']['p95_ms']:.1f} |"
            for batch in BATCHES
        ),
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The command line."""
    if argv[:1] == ["--step"]:
        folder = Path(argv[1])
        atomic_write(folder / "search.json", json.dumps(search(folder)))
        return 0
    size = "for data and INDEX: about 2 GB for a million rows"
    parser = rows_parser("benchmarks.words", __doc__, folder=size, results="words")
    options = parser.parse_args(argv)
    folder = rows_folder(options)
    if folder is None:
        return 0
    make_memory(folder / "memory", options.rows)
    found = described("benchmarks.words", argv, options) | {
        "note": " ".join(options.note),
        "build_without_words": build(folder, "without", options.limit_seconds, "--no-words"),
        "build": build(folder, "index", options.limit_seconds),
    }
    step = [sys.executable, "-m", "benchmarks.words", "--step", str(folder)]
    Watched(step, folder / "log.txt", options.limit_seconds, 1)
    index = Artefact.open(folder / "index", KIND)
    found |= {
        "search": json.loads((folder / "search.json").read_text()),
        "bytes": sum(entry["bytes"] for entry in files_of(index, NAME)),
        "vocabulary": index.manifest[NAME]["vocabulary"],
    }
    save_rows(options, found, as_markdown(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    command_line(main)
