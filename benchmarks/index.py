"""INDEX against plain FAISS flat and autofaiss, on the same clustered synthetic keys in one run.

python -m benchmarks.index --rows 1000000 --folder DIR
python -m benchmarks.index --rows 10000000 --folder DIR --systems ours

Every system builds and searches in a separate process, whose peak memory is that process's. Each gives L candidates a
query; recall is that of the exact flattened cosine over the whole payload: of the ten best by key alone, and after the
exact second level over the L candidates, which is the share of the true ten among them. Steps that are done are not
done again, so a long run can be cut into several.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_data import make_memory, make_plain_keys, make_queries
from benchmarks.index_report import recalls, table
from benchmarks.rows import described, rows_file, rows_folder, rows_parser, save_rows
from benchmarks.watched_process import Watched
from clara.errors import InputError, command_line
from clara.storage.folders import atomic_write
from clara.storage.manifest import read_manifest

SYSTEMS = ("ours", "flat", "autofaiss")
# It calls FAISS by argument names that later ones no longer have.
AUTOFAISS = ("autofaiss==2.18.0", "faiss-cpu==1.8.0.post1", "numpy==1.26.4", "pyarrow==17.0.0")
REPEATS = 3


# --- steps that run in separate processes ----------------------------------------------------------------------------


def rates(search: Callable[[Any], Any], queries: Any, batches: tuple[int, ...]) -> dict[str, float]:
    """Queries a second by batch: the median of three passes."""
    found = {}
    for batch in batches:
        seconds = []
        for _ in range(REPEATS):
            began = time.monotonic()
            for begin in range(0, len(queries), batch):
                search(queries[begin : begin + batch])
            seconds.append(time.monotonic() - began)
        found[str(batch)] = len(queries) / statistics.median(seconds)
    return found


def search_ours(folder: Path, output: Path, candidates: int, threads: int) -> dict[str, Any]:
    """Search the INDEX that pipelines.build_index made: first level alone, and both."""
    import faiss

    from clara.index.indexed_rows import IndexedRows
    from clara.index.search import MemoryIndex
    from clara.memory.store import MemoryStore

    faiss.omp_set_num_threads(threads)
    began = time.monotonic()
    store = MemoryStore.open(folder / "memory")
    index = MemoryIndex.open(output / "index", store)
    opened = time.monotonic() - began
    keys, query = np.load(folder / "query-keys.npy"), np.load(folder / "query.npy")
    rows = IndexedRows(index.keys, index.faiss)
    ranked = [ids for ids, _ in rows.best_keys(keys, candidates)]
    found = np.stack([np.pad(ids, (0, candidates - len(ids)), constant_values=-1) for ids in ranked])
    np.save(output / "found.npy", found)
    both, _ = index.search(query, 10, first_level=candidates)
    np.save(output / "both.npy", both)
    return {
        "open_seconds": opened,
        "queries_per_second": rates(lambda part: rows.best_keys(part, candidates), keys, (1, len(keys))),
        "both_levels_queries_per_second": rates(
            lambda part: index.search(part, 10, first_level=candidates), query, (1, len(query))
        ),
    }


def flat(folder: Path, output: Path, candidates: int, threads: int) -> dict[str, Any]:
    """Plain IndexFlatIP over the float32 keys in RAM."""
    import faiss

    faiss.omp_set_num_threads(threads)
    keys = np.load(folder / "query-keys.npy")
    began = time.monotonic()
    index: Any = faiss.IndexFlatIP(keys.shape[1])
    for path in sorted((folder / "keys").glob("*.npy")):
        index.add(np.load(path))
    built = time.monotonic() - began
    np.save(output / "found.npy", index.search(keys, candidates)[1])
    return {
        "build_seconds": built,
        "kind": "Flat",
        "queries_per_second": rates(lambda part: index.search(part, candidates), keys[: min(64, len(keys))], (1,))
        | rates(lambda part: index.search(part, candidates), keys, (len(keys),)),
    }


# --- the driver ------------------------------------------------------------------------------------------------------


def autofaiss_python(folder: Path) -> str:
    """A Python that has autofaiss, in a separate environment: it wants numpy below 2."""
    python = folder / "autofaiss-env" / "bin" / "python"
    ready = python.parents[1] / "ready"
    if not ready.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *AUTOFAISS], check=True)
        ready.touch()
    return str(python)


def run_system(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build and search with one system; figures, or why there are none."""
    output = folder / name
    output.mkdir(exist_ok=True)
    common = [str(folder), str(output), str(options.candidates), str(options.threads)]
    step = [sys.executable, "-m", "benchmarks.index", "--step"]
    log, found = output / "log.txt", {"system": name}
    if name == "ours":
        command = [
            sys.executable,
            "-m",
            "pipelines.build_index",
            "--memory",
            str(folder / "memory"),
            "--output",
            str(output / "index"),
        ]
        command += [
            "--factory",
            options.factory,
            "--no-verify",
            "--no-words",  # the rows have no texts
            "--quiet",
            "--queries",
            "0",
            "--first-level",
            str(options.candidates),
        ]
        built = Watched(command, log, options.limit_seconds, options.threads)
        found |= {"build": built.figures(), "build_seconds": built.seconds}
        if built.ended != "ok":
            return found
        found["kind"] = read_manifest(output / "index")["factory"]
        searched = Watched([*step, "search_ours", *common], log, options.limit_seconds, options.threads)
        found["index_bytes"] = (output / "index" / "index.faiss").stat().st_size
        found["search"] = searched.figures()
    else:
        make_plain_keys(folder)
        command = [*step, "flat", *common]
        if name == "autofaiss":
            program = str(Path(__file__).with_name("index_autofaiss.py"))
            command = [
                autofaiss_python(Path(options.folder)),
                program,
                str(folder),
                str(output),
                options.autofaiss_memory,
                *common[2:],
            ]
        found["build"] = Watched(command, log, options.limit_seconds, options.threads).figures()
        if (output / "autofaiss.index").is_file():
            found["index_bytes"] = (output / "autofaiss.index").stat().st_size
    if (output / "figures.json").is_file():
        found |= json.loads((output / "figures.json").read_text())
        found |= recalls(folder, output, name)
    return found


def notes_of(given: list[str], before: dict[str, Any], measured: list[str]) -> list[str]:
    """Remarks for a report: those passed, or the previous run's if nothing is measured again."""
    kept: list[str] = [] if measured else before.get("notes", [])
    return given or kept


def main(argv: list[str]) -> int:
    """The command line."""
    if argv[:1] == ["--step"]:
        name, folder, output, candidates, threads = argv[1:]
        measured = {"search_ours": search_ours, "flat": flat}[name](
            Path(folder), Path(output), int(candidates), int(threads)
        )
        measured["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        atomic_write(Path(output) / "figures.json", json.dumps(measured))
        return 0
    size = "for data and indices: about 1.3 GB for a million rows of ours, 2.3 GB with all systems"
    parser = rows_parser("benchmarks.index", __doc__, folder=size, results="index", limit_seconds=840.0)
    add = parser.add_argument
    add("--systems", default="ours,flat,autofaiss", help="which, in this order (default: ours,flat,autofaiss)")
    add("--factory", default="auto", help="of ours (default: auto)")
    add("--queries", type=int, default=256, help="disturbed rows that are asked for (default: 256)")
    add("--exact", type=int, default=128, help="queries, of these, for which exact search is done (default: 128)")
    add("--candidates", type=int, default=200, help="L, candidates of a query (default: 200)")
    add("--threads", type=int, default=2, help="of every system (default: 2)")
    add("--autofaiss-memory", default="600MB", help="largest index that autofaiss may make (default: 600MB)")
    options = parser.parse_args(argv)
    systems = [name for name in options.systems.split(",") if name]
    if unknown := set(systems) - set(SYSTEMS):
        raise InputError(f"--systems {', '.join(sorted(unknown))}: expected some of {', '.join(SYSTEMS)}")
    folder, file = rows_folder(options), rows_file(options).with_suffix(".json")
    if folder is None:
        return 0
    before = json.loads(file.read_text()) if file.is_file() else {"systems": {}}
    seconds = make_memory(folder, options.rows)
    make_queries(folder, options.queries, options.exact)
    results: dict[str, Any] = described("benchmarks.index", argv, options) | {
        "threads": options.threads,
        "candidates": options.candidates,
        "num_exact": options.exact,
        "data_seconds": seconds or before.get("data_seconds", 0.0),
        "notes": notes_of(options.note, before, systems),
        "systems": before["systems"],
    }
    for system in [*systems, ""]:  # the last round, of no system, writes the report again
        if system:
            print(f"{system} …", flush=True)
            results["systems"][system] = run_system(system, folder, options)
        for other, figures in results["systems"].items():  # what is compared with flat waits for it
            if (folder / other / "found.npy").is_file():
                figures |= recalls(folder, folder / other, other)
        save_rows(options, results, table(results))
    print(file.with_suffix(".md").read_text())
    return 0


if __name__ == "__main__":
    command_line(main)
