"""INDEX over a MEMORY: FAISS over its keys.

python -m pipelines.build_index --memory DIR --output DIR
"""

import argparse
import json

from clara.errors import InputError, command_line
from clara.index import build_index, resolve_factory
from clara.memory import MemoryStore


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = argparse.ArgumentParser(
        prog="python -m pipelines.build_index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--memory", required=True, metavar="DIR", help="MEMORY to index")
    found.add_argument("--output", required=True, metavar="DIR", help="INDEX to write")
    found.add_argument("--factory", default="auto", help="FAISS factory string; auto: by the number of rows (default: auto)")
    found.add_argument("--seed", type=int, default=0, help="draws training sample and measured queries (default: 0)")
    found.add_argument("--first-level", type=int, default=200, help="L candidates of the first level, for the measurement (default: 200)")
    found.add_argument(
        "--queries", type=int, default=64, help="queries of the measurement, which reads the payload once; 0: none (default: 64)"
    )
    found.add_argument("--recall-floor", type=float, default=0.9, help="recall@10 under this share is warned of (default: 0.9)")
    found.add_argument(
        "--no-verify", action="store_true", help="skip reading every byte of the MEMORY against its sha256 before (default: read it)"
    )
    found.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    for name, value, least in (("--first-level", options.first_level, 1), ("--queries", options.queries, 0)):
        if value < least:
            raise InputError(f"{name} {value}; expected at least {least}")
    if options.dry_run:
        store = MemoryStore.open(options.memory)
        plan = {
            "memory": store.hash,
            "rows": len(store),
            "key_size": store.key_size,
            "factory": resolve_factory(options.factory, len(store)),
        }
        print(json.dumps({**plan, "output": options.output}, indent=1))
        return 0
    manifest = build_index(
        options.memory,
        options.output,
        options.factory,
        seed=options.seed,
        first_level=options.first_level,
        num_queries=options.queries,
        recall_floor=options.recall_floor,
        verify=not options.no_verify,
    )
    print(f"{options.output}: INDEX of {manifest['counts']['rows']} rows, {manifest['factory']}, {json.dumps(manifest['measured'])}")
    return 0


if __name__ == "__main__":
    command_line(main)
