"""Keys of an INDEX side by side: a projection of the flattened vector against slot means in float16 or codes.

python -m benchmarks.index_keys --rows 1000000 --folder DIR

Synthetic clustered rows of 8 memory tokens of 576 numbers (int8), with a common part as large as in the demo's MEMORY.
The projection has 1,024 numbers and is for the published score; slot means are centred. Each INDEX is built and
searched in separate processes. Recall@10 is that of disturbed rows against exact search by the same score, of the ten
best by key alone and of both levels. Steps that are done are not done again, so a long run can be cut into several.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_data import make_memory
from benchmarks.rows import described, load_average, rows_folder, rows_parser, save_rows
from benchmarks.watched_process import Watched
from clara.arrays import Floats
from clara.config.model import Score
from clara.errors import InputError, command_line
from clara.model.array_geometry import PUBLISHED
from clara.storage.folders import atomic_write

SHAPE, KEY_SIZE, SHARD_ROWS, COMMON = (8, 576), 1024, 12_500, 0.69
SLOT_MEAN = Score(pooling="slot_mean", centred=True)
SYSTEMS = {
    "projection": (PUBLISHED, "{lists},SQfp16"),
    "slot-mean": (SLOT_MEAN, "{lists},SQfp16"),
    "slot-mean-int8": (SLOT_MEAN, "{lists},SQ8"),
    "slot-mean-codes": (SLOT_MEAN, "OPQ64,{lists},PQ64"),
}
"""Score of each INDEX, and its FAISS factory string; the last one is that of `auto` from five million rows on."""
BATCHES, NUM_QUERIES, FOUND, REPEATS = (1, 32), 64, 10, 3


def factory_of(name: str, rows: int, lists: int = 0) -> str:
    """FAISS factory string; with as many lists as `auto` chooses for the projection if `lists` is 0."""
    from clara.index.factory import resolve_factory

    chosen = f"IVF{lists}" if lists else resolve_factory("auto", max(rows, 50_001), KEY_SIZE).partition(",")[0]
    return SYSTEMS[name][1].format(lists=chosen)


def build(folder: Path, name: str, factory: str) -> dict[str, Any]:
    """Build one INDEX."""
    from clara.index.build import build_index
    from clara.index.search import FILE

    manifest = build_index(
        folder / "memory", folder / name, factory, num_queries=0, words=False, score=SYSTEMS[name][0]
    )
    return {"kind": manifest["factory"], "index_bytes": (folder / name / FILE).stat().st_size}


def search(folder: Path, name: str, first_level: int) -> dict[str, Any]:
    """Search one INDEX: milliseconds of a batch, by key and with the exact score, and recall of both."""
    import faiss

    from clara.index.indexed_rows import IndexedRows
    from clara.index.recall import Measurement, Recall
    from clara.index.search import MemoryIndex
    from clara.memory.store import MemoryStore

    faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    store = MemoryStore.open(folder / "memory")
    index = MemoryIndex.open(folder / name, store, SYSTEMS[name][0])
    recall = Recall(index, Measurement(first_level, NUM_QUERIES), seed=0, row_bytes=1)
    rows = IndexedRows(index.keys, index.faiss)
    rng = np.random.default_rng(1)
    query = store.memory(rng.choice(store.row_ids, NUM_QUERIES, replace=False))
    query = query - (0 if index.keys.mean is None else index.keys.mean) + rng.standard_normal(query.shape, np.float32)
    return {
        "by_key_ms": milliseconds(lambda part: rows.best_keys(index.keys.of_queries(part), first_level), query),
        "both_levels_ms": milliseconds(lambda part: index.search(part, FOUND, first_level), query),
        "recall_by_key": recall.of(FOUND),
        "recall_of_both_levels": recall.of(first_level),
    }


def milliseconds(run: Callable[[Floats], object], query: Floats) -> dict[str, float]:
    """Of a batch, by its size: the median."""
    found = {}
    for batch in BATCHES:
        seconds = []
        for begin in range(0, len(query) * REPEATS, batch):
            part = query[begin % len(query) :][:batch]
            began = time.monotonic()
            run(part)
            seconds.append(time.monotonic() - began)
        found[str(batch)] = 1000 * statistics.median(seconds)
    return found


def as_markdown(found: dict[str, Any]) -> str:
    """A report of the figures."""
    rows, mib = found["rows"], 2**20
    lines = [
        f"# Keys of an INDEX, {rows:,} rows",
        "",
        f"{SHAPE[0]} memory tokens of {SHAPE[1]} numbers (int8), clustered. {found['hardware']}; load average "
        f"{found['load_average']}. {found['threads']} threads, L = {found['first_level']}. {found['note']}".strip(),
        "",
        f"Command: `{found['command']}`",
        "",
        "| key | kind | index MiB | bytes per row | build s | peak MiB (own) | by key, one question, ms "
        "| 32 questions, ms | both levels, one question, ms | 32 questions, ms | recall@10 by key | of both levels |",
        f"|{'---|' * 12}",
    ]
    for name, one in found["systems"].items():
        if "recall_by_key" not in one:
            lines.append(f"| {name} | {one['ended']} |{' |' * 10}")
            continue
        size, key, both = one["index_bytes"], one["by_key_ms"], one["both_levels_ms"]
        lines.append(
            f"| {name} | {one['kind']} | {size / mib:,.0f} | {size / rows:,.0f} | {one['seconds']:,.0f} "
            f"| {one['peak_bytes'] / mib:,.0f} ({one['peak_own_bytes'] / mib:,.0f}) "
            f"| {key['1']:.1f} | {key['32']:.1f} | {both['1']:.1f} | {both['32']:.1f} "
            f"| {one['recall_by_key']:.3f} | {one['recall_of_both_levels']:.3f} |"
        )
    return "\n".join([*lines, "", "Peak: of the build, with mapped files; own: without them.", ""])


def run_step(folder: Path, name: str, step: str, argument: str, options: argparse.Namespace) -> dict[str, Any]:
    """One step in a new process, unless it is done; its figures, and for a build those of its process."""
    file = folder / f"{name}-{step}.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    command = [sys.executable, "-m", "benchmarks.index_keys", "--step", step, str(folder), name, argument]
    watched = Watched(command, folder / "log.txt", options.limit_seconds, options.threads).figures()
    if watched["ended"] != "ok":
        return watched
    found = json.loads((folder / "step.json").read_text()) | (watched if step == "build" else {})
    atomic_write(file, json.dumps(found))
    return dict(found)


def main(argv: list[str]) -> int:
    """The command line."""
    if argv[:1] == ["--step"]:
        step, folder, name, argument = argv[1:]
        place = Path(folder)
        found = build(place, name, argument) if step == "build" else search(place, name, int(argument))
        atomic_write(place / "step.json", json.dumps(found))
        return 0
    size = "for data and indices: about 11 GB for a million rows"
    parser = rows_parser("benchmarks.index_keys", __doc__, folder=size, results="index_keys")
    add = parser.add_argument
    add("--systems", default=",".join(SYSTEMS), help="which, in this order (default: %(default)s)")
    add("--lists", type=int, default=0, help="inverted lists; 0: as auto chooses for the projection (default: 0)")
    add("--first-level", type=int, default=200, metavar="L", help="candidates of a question (default: %(default)s)")
    add("--threads", type=int, default=2, help="of each process (default: %(default)s)")
    options = parser.parse_args(argv)
    if unknown := set(options.systems.split(",")) - set(SYSTEMS):
        raise InputError(f"--systems {', '.join(sorted(unknown))}: expected some of {', '.join(SYSTEMS)}")
    folder = rows_folder(options)
    if folder is None:
        return 0
    make_memory(folder, options.rows, shape=SHAPE, key_size=KEY_SIZE, shard_rows=SHARD_ROWS, common=COMMON)
    found: dict[str, Any] = described("benchmarks.index_keys", argv, options) | {
        "threads": options.threads,
        "first_level": options.first_level,
        "note": " ".join(options.note),
        "systems": {},
    }
    for name in options.systems.split(","):
        print(f"{name} …", flush=True)
        built = run_step(folder, name, "build", factory_of(name, options.rows, options.lists), options)
        searched = {} if built["ended"] != "ok" else run_step(folder, name, "search", str(options.first_level), options)
        found["systems"][name] = built | searched
        found["load_average"] = load_average()
    save_rows(options, found, as_markdown(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    command_line(main)
