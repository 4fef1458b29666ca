"""A corpus job with and without dense vectors: what `--dense-model` adds to compressing and indexing a corpus.

python -m benchmarks.dense_job --checkpoint DIR --base FOLDER --input FILE --dense-model FOLDER --documents 200

The commands are run over the documents and over the first of them alone: the difference is what the other ones cost,
without the start of Python and the loading of models. Processor seconds hardly depend on what else the machine does.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, save
from benchmarks.processes import python, run_measured
from clara.config.flags import plain_parser
from clara.memory.store import MemoryStore

STEPS = {"compress": "build_memory", "index": "build_index", "index_dense": "build_index --dense-model"}
"""Steps and the commands that they are."""
WITHOUT, WITH = ("compress", "index"), ("compress", "index_dense")


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = plain_parser("benchmarks.dense_job", __doc__)
    add = found.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="CHECKPOINT whose compressor is used")
    add("--base", type=Path, required=True, metavar="FOLDER", help="folder of its LM")
    add("--input", type=Path, required=True, metavar="FILE", help="documents as JSONL with title and text")
    add("--dense-model", type=Path, required=True, metavar="FOLDER", help="sentence-transformers folder")
    add("--documents", type=int, default=200, help="documents, the first ones (default: %(default)s)")
    add("--runner", default="local", help="what computes the vectors, see build_index (default: %(default)s)")
    add("--num-workers", type=int, default=1, help="processes of build_memory and of the runner (default: %(default)s)")
    add("--output", type=Path, default=RESULTS / "dense_job", metavar="DIR", help="folder of the results")
    return found


def run(args: argparse.Namespace, folder: Path, documents: int) -> dict[str, Any]:
    """Each step over so many documents: seconds, processor seconds and the largest memory of all processes."""
    memory, workers = folder / f"memory-{documents}", f"--num-workers={args.num_workers}"
    compress = ["--input", str(args.input), "--checkpoint", str(args.checkpoint), "--backbone", str(args.base)]
    index = ["--memory", str(memory), "--queries=0", "--quiet", "--output"]
    runner = [] if args.runner == "local" else [f"--runner={args.runner}", workers]
    dense = [f"--dense-model={args.dense_model}", *runner]
    commands = {
        "compress": ["pipelines.build_memory", *compress, f"--limit={documents}", workers, "--output", str(memory)],
        "index": ["pipelines.build_index", *index, str(folder / f"index-{documents}")],
        "index_dense": ["pipelines.build_index", *index, str(folder / f"dense-{documents}"), *dense],
    }
    found: dict[str, Any] = {}
    for name, command in commands.items():
        usage = run_measured(python(*command), log=folder / "log.txt")
        found[name] = {
            "seconds": usage.seconds,
            "processor_seconds": usage.processor_seconds,
            "peak_pss_bytes": usage.pss,
        }
        print(f"{documents} documents, {name}: {usage.seconds:.0f} s", flush=True)
    return found | {"rows": len(MemoryStore.open(memory))}


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Processor seconds with dense vectors over those without: whole commands, and without what one document takes."""
    every, one = found["runs"]["all"], found["runs"]["one"]

    def spent(names: tuple[str, ...], less: bool) -> float:
        return float(sum(every[n]["processor_seconds"] - (one[n]["processor_seconds"] if less else 0.0) for n in names))

    return {
        "whole_commands": spent(WITH, less=False) / spent(WITHOUT, less=False),
        "further_rows": spent(WITH, less=True) / spent(WITHOUT, less=True),
    }


def as_markdown(found: dict[str, Any]) -> str:
    """A report of the figures."""
    every, one, around, ratio = found["runs"]["all"], found["runs"]["one"], found["environment"], found["ratios"]
    further = every["rows"] - one["rows"]
    lines = [
        "# A corpus job with and without dense vectors",
        "",
        f"{every['rows']} rows of {found['documents']} documents. {around['cores']} cores, {around['processor']}; load "
        f"average {around['load_average']}. {found['workers']} worker, vectors by runner {found['runner']}.",
        "",
        f"Command: `{around['command']}`",
        "",
        "| command | seconds | processor seconds | of one document | milliseconds of a further row | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, command in STEPS.items():
        of, alone = every[name], one[name]["processor_seconds"]
        lines.append(
            f"| {command} | {of['seconds']:.0f} | {of['processor_seconds']:.1f} | {alone:.1f} "
            f"| {1000 * (of['processor_seconds'] - alone) / further:,.0f} | {of['peak_pss_bytes'] / 2**20:,.0f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Compressing and indexing with dense vectors takes {ratio['whole_commands']:.2f} times the processor time "
            f"of the same without; {ratio['further_rows']:.2f} times for each further row.",
            "",
        ]
    )


def main(argv: list[str]) -> int:
    """The command line."""
    args = parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        runs = {"one": run(args, Path(name), 1), "all": run(args, Path(name), args.documents)}
    found: dict[str, Any] = {
        "environment": environment("benchmarks.dense_job"),
        "documents": args.documents,
        "workers": args.num_workers,
        "runner": args.runner,
        "runs": runs,
    }
    places = {"CHECKPOINT": args.checkpoint, "BASE": args.base, "FILE": args.input, "FOLDER": args.dense_model}
    for word, place in places.items():
        found["environment"]["command"] = found["environment"]["command"].replace(str(place), word)
    found["ratios"] = ratios(found)
    save(args.output, found, as_markdown(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
