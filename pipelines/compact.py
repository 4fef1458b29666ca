"""Fold the overlays and tombstones of an updated MEMORY into plain shards.

    python -m pipelines.compact --memory DIR --output DIR

The rows and their stored numbers stay what they are, bit for bit; nothing is compressed. The older version stays too.
"""

from typing import Any

from clara.config.flags import Command, add_setting
from clara.errors import InputError, command_line
from clara.memory.compact import compact, compact_recipe
from clara.memory.shards import KIND
from clara.memory.store import MemoryStore
from clara.progress import Progress
from clara.storage import paths
from pipelines.build_memory.outcome import remove_leftovers
from pipelines.job.artefact_job import ArtefactJob, invalidate_manifest
from pipelines.job.locks import Lease


def parser() -> Command:
    """The command line's arguments."""
    found = Command("pipelines.compact", __doc__)
    add_setting(found, "memory", metavar="DIR", required=True)
    add_setting(found, "output", metavar="DIR", required=True)
    add_setting(found, "corpus_job.num_shards", note="here 0: as many as before")
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
    store = MemoryStore.open(args.memory)
    output = paths.absolute(args.output)
    if output in (paths.absolute(args.memory), paths.absolute(store.directory)):
        raise InputError(
            f"--output {args.output}: is the MEMORY of --memory, which stays as it is; give another directory"
        )
    num_shards = args.num_shards or store.num_shards
    recipe = compact_recipe(store, num_shards)

    def plan() -> dict[str, Any]:
        parts = {name: len(store.manifest[name]) for name in ("shards", "overlays", "tombstones")}
        return {**parts, "rows": len(store), "num_shards": num_shards, "output": args.output}

    def prepare() -> None:
        if not args.no_verify:
            store.artefact.verify()

    def write(_: None, lease: Lease | None) -> None:
        with Progress(num_shards, "compact", " shards") as bar:
            compact(store, output, num_shards=num_shards, progress=lambda done, _: bar.update(done - bar.n) and None)
        remove_leftovers(output)

    return ArtefactJob(
        output=args.output,
        kind=KIND,
        plan=plan,
        recipe=lambda: recipe,
        prepare=prepare,
        clear=lambda: invalidate_manifest(output, args.overwrite, recipe),
        write=write,
        report=lambda _: print(f"{args.output}: MEMORY of {len(store)} rows in {num_shards} shards"),
    ).run(dry_run=args.dry_run)


if __name__ == "__main__":
    command_line(main)
