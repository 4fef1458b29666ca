"""Retrieval of an evaluation over many rows: seconds and peak memory of ranking, pools and measures.

python -m benchmarks.evaluation_rows --folder DIR [--rows 1000000] [--questions 3610]

A synthetic MEMORY of texts with tiny vectors (`benchmarks.words`) and its INDEX are made in the folder and kept; those
of `benchmarks.fused` in the same folder are used as they are. A process then does what `training.evaluate
--retrieval-only --baselines bm25` does for the questions: it opens the rows, draws a pool of 20 documents for each
question, ranks all rows and the pool by memory and by BM25, and measures. The aim for 3,610 questions over a million
rows: less than 4 GB and ten minutes on two cores.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.rows import described, rows_folder, rows_parser, save_rows
from benchmarks.watched_process import Watched
from benchmarks.words import QUESTION_WORDS, draw_texts, make_memory
from clara.data.questions import Question
from clara.errors import command_line
from clara.index.keys import score_of
from clara.index.search import KIND, MemoryIndex
from clara.memory.store import MemoryStore
from clara.retrieval.bm25 import Bm25
from clara.retrieval.memory_ranker import MemoryRanker
from clara.retrieval.ranker import Queries, Ranker
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write
from clara.storage.manifest import MANIFEST
from training.evaluation.measures import retrieval_measures
from training.evaluation.retrievers import Corpus, rank_and_score

POOL_SIZE, FIRST_LEVEL = 20, 200
T = TypeVar("T")
AIM_BYTES, AIM_SECONDS = 4 * 10**9, 600.0


def draw_questions(store: MemoryStore, number: int) -> list[Question]:
    """Questions of random words, each with a random row's document as the right one."""
    rng = np.random.default_rng(1)
    positions = rng.integers(len(store), size=number)
    chunks = store.records(store.row_ids[positions])
    texts = draw_texts(rng, number, QUESTION_WORDS)
    return [
        Question(f"q{n}", text, ("answer",), (chunk.document_id,))
        for n, (text, chunk) in enumerate(zip(texts, chunks, strict=True))
    ]


class Measured:
    """Seconds by part, and the process's peak memory after each."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    def run(self, name: str, work: Callable[[], T]) -> T:
        """Do the work of a part."""
        began = time.monotonic()
        done = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.parts[name] = {"seconds": time.monotonic() - began, "peak_bytes": peak}
        return done


def evaluate(folder: Path, num_questions: int) -> dict[str, Any]:
    """Rank and measure as an evaluation does."""
    measured = Measured()
    store = measured.run("open MEMORY", lambda: MemoryStore.open(folder / "memory"))
    artefact = Artefact.open(folder / "index", KIND)
    corpus = measured.run("documents of all rows", lambda: Corpus(store))
    questions = draw_questions(store, num_questions)
    pools = measured.run("pools", lambda: [corpus.rows(corpus.pool(q, POOL_SIZE)) for q in questions])
    shape = (num_questions, store.num_memory_tokens, store.hidden_size)
    vectors = torch.from_numpy(np.random.default_rng(2).standard_normal(shape).astype(np.float32))
    queries = Queries.of(questions, store, vectors)
    index = measured.run("open INDEX", lambda: MemoryIndex.open(artefact, store, score_of(artefact)))
    words = measured.run("open words", lambda: Bm25.open(artefact, store))
    rankers: dict[str, Ranker] = {"memory": MemoryRanker(index, FIRST_LEVEL), "bm25": words}
    found = {}
    for name, ranker in rankers.items():
        rankings = measured.run(f"rank by {name}", lambda r=ranker: rank_and_score(r, queries, pools, store))  # type: ignore[misc]
        documents = [corpus.ranked_documents(r.index) for r in rankings]
        rows = measured.run(
            f"measure {name}",
            lambda of=documents: retrieval_measures("index", of, [q.positive_ids for q in questions]),  # type: ignore[misc]
        )
        found[name] = {"recall@20": float(np.mean([row["index.recall@20"] for row in rows]))}
    return {
        "questions": num_questions,
        "parts": measured.parts,
        "seconds": sum(part["seconds"] for part in measured.parts.values()),
        "peak_bytes": max(part["peak_bytes"] for part in measured.parts.values()),
        "found": found,
    }


def as_markdown(found: dict[str, Any]) -> str:
    """A report of the figures."""
    of = found["evaluation"]
    within = of["seconds"] < AIM_SECONDS and of["peak_bytes"] < AIM_BYTES
    lines = [
        f"# Retrieval of {of['questions']:,} questions over {found['rows']:,} rows",
        "",
        f"{found['hardware']}; load average {found['load_average']}. {found['note']}".strip(),
        "",
        f"Command: `{found['command']}`",
        "",
        f"{of['seconds']:.0f} s, peak {of['peak_bytes'] / 1e9:.2f} GB "
        f"({'within' if within else 'beyond'} {AIM_SECONDS:.0f} s and {AIM_BYTES / 1e9:.0f} GB).",
        "",
        "| part | seconds | peak GB so far |",
        "|---|---|---|",
        *(f"| {name} | {part['seconds']:.1f} | {part['peak_bytes'] / 1e9:.2f} |" for name, part in of["parts"].items()),
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The command line."""
    if argv[:1] == ["--step"]:
        atomic_write(Path(argv[1]) / "evaluation.json", json.dumps(evaluate(Path(argv[1]), int(argv[2]))))
        return 0
    size = "for data and INDEX: about 2 GB for a million rows"
    parser = rows_parser("benchmarks.evaluation_rows", __doc__, folder=size, results="evaluation_rows")
    parser.add_argument("--questions", type=int, default=3610, metavar="N", help="questions (default: %(default)s)")
    options = parser.parse_args(argv)
    folder = rows_folder(options)
    if folder is None:
        return 0
    make_memory(folder / "memory", options.rows)
    build = [sys.executable, "-m", "pipelines.build_index", "--memory", str(folder / "memory")]
    build += ["--output", str(folder / "index"), "--queries", "0", "--no-verify", "--quiet"]
    built: dict[str, Any] = {"ended": "ok", "note": "it was there"}
    if not (folder / "index" / MANIFEST).is_file():
        built = Watched(build, folder / "log.txt", options.limit_seconds, 2).figures()
    step = [sys.executable, "-m", "benchmarks.evaluation_rows", "--step", str(folder), str(options.questions)]
    watched = Watched(step, folder / "log.txt", options.limit_seconds, 2).figures()
    for what, figures in (("build", built), ("evaluation", watched)):
        if figures["ended"] != "ok":
            print(f"{what}: {figures['ended']}", file=sys.stderr)
            return 1
    found = described("benchmarks.evaluation_rows", argv, options) | {
        "note": " ".join(options.note),
        "build": built,
        "evaluation": json.loads((folder / "evaluation.json").read_text()) | {"process": watched},
    }
    save_rows(options, found, as_markdown(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    command_line(main)
