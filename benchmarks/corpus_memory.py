"""Peak memory of a corpus job on this machine by the size of the corpus: it must not grow with it.

    python -m benchmarks.corpus_memory --gigabytes 0.2 1 5 --work /tmp/corpus_memory

Each size is one generated JSONL file (two percent exact duplicates), compressed by a tiny random model. Memory is that
of all processes together, sampled: proportional set size, and the pages that no file backs. A job that does not end
within --limit seconds is killed and run again until it ends, so that a long one can be measured in pieces.
"""

import argparse
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, save
from benchmarks.generated_corpus import write_corpus, write_model
from benchmarks.processes import Usage, python, run_measured
from clara.config.flags import plain_parser
from clara.storage.manifest import read_manifest

_GB = 10**9


def parser() -> argparse.ArgumentParser:
    found = plain_parser("benchmarks.corpus_memory", __doc__)
    found.add_argument(
        "--gigabytes",
        type=float,
        nargs="+",
        default=[0.2, 1.0, 5.0],
        help="sizes of the corpora in 10^9 bytes (default: 0.2 1 5)",
    )
    found.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder for corpora and MEMORY; what is finished there is not made again",
    )
    found.add_argument("--num-workers", type=int, default=2, help="processes of the job (default: 2)")
    found.add_argument(
        "--limit",
        type=float,
        default=0.0,
        help="kill the job after so many seconds and run it again (default: 0, never)",
    )
    found.add_argument(
        "--runs",
        type=int,
        default=0,
        help="end after so many runs of a job, finished or not (default: 0, when it has ended)",
    )
    found.add_argument(
        "--tree", type=Path, default=Path.cwd(), help="source tree whose job is measured (default: this one)"
    )
    found.add_argument("--output", type=Path, default=RESULTS / "corpus_memory", help="folder of the results")
    return found


def measure(args: argparse.Namespace, gigabytes: float, checkpoint: Path) -> dict[str, Any]:
    """Run the job on one size, to its end or as often as allowed."""
    name = f"{gigabytes:g}gb"
    corpus, memory = args.work / f"{name}.jsonl", args.work / f"memory-{name}"
    if not corpus.exists():
        write_corpus(corpus.with_suffix(".partial"), int(gigabytes * _GB))
        corpus.with_suffix(".partial").rename(corpus)
    command = python(
        "pipelines.build_memory", "--input", str(corpus), "--output", str(memory), "--checkpoint", str(checkpoint)
    )
    command += ["--dtype=float32", f"--num-workers={args.num_workers}", "--batch-tokens=16384"]
    usage, runs = Usage(), 0
    while not (memory / "manifest.json").exists() and (not args.runs or runs < args.runs):
        log = args.work / f"{name}.log"
        try:
            usage = usage.join(
                run_measured(
                    command,
                    folder=args.tree,
                    environment={"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
                    limit=args.limit,
                    log=log,
                )
            )
        except Exception:
            print(log.read_text()[-3000:], file=sys.stderr)
            raise
        runs += 1
    done = (memory / "manifest.json").exists()
    left = sorted(path.name for path in memory.glob(".*"))
    row = {
        "gigabytes": gigabytes,
        "bytes": corpus.stat().st_size,
        "finished": done,
        "runs": runs,
        **asdict(usage),
        "left": left,
    }
    row["samples"] = usage.samples[:: max(1, len(usage.samples) // 200)]
    if done:
        row["counts"] = read_manifest(memory)["counts"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| text | documents | peak, all processes (PSS) | of that unbacked by files | "
        "driver | largest worker | seconds | processor time a document | runs |"
    ]
    lines.append("|" + "---|" * 9)
    for row in rows:
        mb = {name: f"{row[name] / 2**20:.0f} MiB" for name in ("pss", "private", "root", "largest")}
        documents, each = "not finished", ""
        if row["finished"]:
            documents, each = (
                f"{row['counts']['documents']:,}",
                f"{1000 * row['processor_seconds'] / row['counts']['documents']:.1f} ms",
            )
        lines.append(
            f"| {row['gigabytes']:g} GB | {documents} | {mb['pss']} | {mb['private']} | "
            f"{mb['root']} | {mb['largest']} | {row['seconds']:.0f} | {each} | {row['runs']} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    args.work, args.output = args.work.resolve(), args.output.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.work / "model" / "checkpoint"
    if not (checkpoint / "manifest.json").exists():
        shutil.rmtree(args.work / "model", ignore_errors=True)
        write_model(args.work / "model")
    rows = []
    for gigabytes in args.gigabytes:
        rows.append(measure(args, gigabytes, checkpoint))
        print(table(rows), flush=True)
        result = {**environment("benchmarks.corpus_memory"), "rows": rows, "load": os.getloadavg()}
        save(args.output, result, f"# Peak memory of the corpus job\n\n`{result['command']}`\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
