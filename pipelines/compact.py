"""Fold the overlays and tombstones of an updated MEMORY into plain shards.

    python -m pipelines.compact --memory DIR --output DIR

The rows and their stored numbers stay what they are, bit for bit; nothing is compressed. The older version stays too.
"""

import argparse
import json

from clara.errors import InputError, command_line
from clara.memory.compact import compact, compact_recipe
from clara.memory.shards import KIND
from clara.memory.store import MemoryStore
from clara.progress import Progress
from clara.storage import artefact, paths
from clara.storage.cache import verify
from pipelines.build_memory.outcome import remove_leftovers
from pipelines.job.completion import clear_the_way
from pipelines.job.locks import locked


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = argparse.ArgumentParser(
        prog="python -m pipelines.compact", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--memory", required=True, metavar="DIR", help="MEMORY to compact")
    found.add_argument("--output", required=True, metavar="DIR", help="MEMORY to write")
    found.add_argument("--num-shards", type=int, default=0, help="files of rows (default: 0, as many as before)")
    found.add_argument(
        "--no-verify",
        action="store_true",
        help="skip reading every byte of the MEMORY against its sha256 before (default: read it)",
    )
    found.add_argument(
        "--overwrite", action="store_true", help="replace a finished MEMORY that was made by another recipe"
    )
    found.add_argument("--dry-run", action="store_true", help="print what there is to fold, and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    args = parser().parse_args(argv)
    if args.num_shards < 0:
        raise InputError(f"--num-shards {args.num_shards}: expected 0 or more")
    store = MemoryStore.open(args.memory)
    output = paths.absolute(args.output)
    if output in (paths.absolute(args.memory), paths.absolute(store.directory)):
        raise InputError(
            f"--output {args.output}: is the MEMORY of --memory, which stays as it is; give another directory"
        )
    num_shards = args.num_shards or store.num_shards
    if args.dry_run:
        parts = {name: len(store.manifest[name]) for name in ("shards", "overlays", "tombstones")}
        print(json.dumps({**parts, "rows": len(store), "num_shards": num_shards, "output": args.output}, indent=1))
        return 0
    if artefact.up_to_date(output, KIND, compact_recipe(store, num_shards)):
        print(f"{args.output}: up to date")
        return 0
    if not args.no_verify:
        verify(args.memory, KIND)
    with locked(output), Progress(num_shards, "compact", " shards") as bar:
        clear_the_way(output, args.overwrite, compact_recipe(store, num_shards))
        compact(store, output, num_shards=num_shards, progress=lambda done, _: bar.update(done - bar.n) and None)
        remove_leftovers(output)
    print(f"{args.output}: MEMORY of {len(store)} rows in {num_shards} shards")
    return 0


if __name__ == "__main__":
    command_line(main)
