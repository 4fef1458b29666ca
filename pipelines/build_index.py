"""INDEX over a MEMORY: FAISS over its keys.

python -m pipelines.build_index --memory DIR --output DIR

Recall@10 is measured against exact search, with rows of the INDEX itself as queries: each one's memory plus Gaussian
noise of half its length. No row is held back from the INDEX. Questions that a query reasoner encodes may lie farther
from the rows, and their recall may be another; python -m training.evaluate measures what is found for questions.
"""

import argparse
import json

from clara.errors import InputError, command_line
from clara.index.build import Build, build, recipe_of
from clara.index.factory import check_kind
from clara.index.gpu import require_gpu
from clara.index.recall import RECALL_AT, Measurement
from clara.index.search import KIND
from clara.memory.store import MemoryStore
from clara.storage.artefact import refuse_other
from pipelines.job.locks import locked


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = argparse.ArgumentParser(
        prog="python -m pipelines.build_index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--memory", required=True, metavar="DIR", help="MEMORY to index")
    found.add_argument("--output", required=True, metavar="DIR", help="INDEX to write")
    add = found.add_argument
    add(
        "--factory",
        default="auto",
        help="FAISS factory string; auto: Flat, IVF with float16 keys or OPQ+IVF+PQ, by the number of rows (default: auto)",
    )
    add(
        "--probes",
        type=int,
        default=0,
        help="inverted lists that a query looks into; 0: a sixteenth of them, 8 at least (default: 0)",
    )
    add("--seed", type=int, default=0, help="draws training sample and measured queries (default: 0)")
    add(
        "--first-level",
        type=int,
        default=200,
        help="L candidates of the first level, for the measurement, 10 at least (default: 200)",
    )
    add(
        "--queries",
        type=int,
        default=64,
        help="indexed rows that the measurement asks for, disturbed by noise of half their length; it reads the payload once; 0: none (default: 64)",
    )
    add(
        "--measure-gib",
        type=float,
        default=32.0,
        help="GiB of payload that the measurement may read; where there is more, a sample of whole shards "
        "stands for all and recall is estimated from below (default: 32)",
    )
    add(
        "--recall-floor",
        type=float,
        default=0.9,
        help="recall@10 under this share is warned of, with what would help (default: 0.9)",
    )
    add(
        "--strict-recall",
        action="store_true",
        help="refuse a recall under the floor; without it the INDEX is kept with a warning",
    )
    add(
        "--gpu",
        action="store_true",
        help="cluster and assign on a CUDA device, with faiss-gpu-cu12 (default: on the CPU)",
    )
    add(
        "--parent",
        default="",
        metavar="DIR",
        help="INDEX of the version before: its training, and the rows whose shard files are the same, are taken over "
        "(default: none)",
    )
    add("--quiet", action="store_true", help="no progress bars")
    found.add_argument(
        "--no-verify",
        action="store_true",
        help="skip reading every byte of the MEMORY against its sha256 before (default: read it)",
    )
    found.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    return found


def check(options: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        InputError: which flag, and what was expected.
    """
    for name, value, least in (
        ("--first-level", options.first_level, RECALL_AT),
        ("--queries", options.queries, 0),
        ("--probes", options.probes, 0),
        ("--seed", options.seed, 0),
    ):
        if value < least:
            why = f", as recall@{RECALL_AT} is measured" if name == "--first-level" else ""
            raise InputError(f"{name} {value}; expected at least {least}{why}")
    if not 0 < options.measure_gib < float("inf"):
        raise InputError(
            f"--measure-gib {options.measure_gib}; expected a number of GiB above 0, or --queries 0 to measure nothing"
        )
    if not 0 <= options.recall_floor <= 1:
        raise InputError(f"--recall-floor {options.recall_floor}; expected a share from 0 to 1")
    if options.strict_recall and not options.queries:
        raise InputError(
            "--strict-recall with --queries 0: recall is not measured, so nothing can be refused; leave one of them out"
        )


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    check(options)
    how = Build(
        factory=options.factory,
        seed=options.seed,
        probes=options.probes,
        measurement=Measurement(options.first_level, options.queries, most_bytes=int(options.measure_gib * 2**30)),
        recall_floor=options.recall_floor,
        strict_recall=options.strict_recall,
        gpu=options.gpu,
        verify=not options.no_verify,
        parent=options.parent,
        progress=not options.quiet,
    )
    refuse_other(options.output, KIND)  # before the lock, which is a file there
    if options.dry_run:
        if how.gpu:
            require_gpu()
        store = MemoryStore.open(options.memory)
        recipe = recipe_of(store, how)
        check_kind(store, recipe["factory"], how.probes)
        print(
            json.dumps({**recipe, "rows": len(store), "key_size": store.key_size, "output": options.output}, indent=1)
        )
        return 0
    with locked(options.output):
        manifest = build(options.memory, options.output, how)
    print(
        f"{options.output}: INDEX of {manifest['counts']['rows']} rows, {manifest['factory']}, {json.dumps(manifest['measured'])}"
    )
    return 0


if __name__ == "__main__":
    command_line(main)
