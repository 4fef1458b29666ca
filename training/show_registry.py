"""Show a registered model: its versions, who holds which alias, and why.

python -m training.show_registry NAME --tracking-uri sqlite:///PATH
"""

import argparse
import dataclasses
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clara.config.flags import Command, add_setting
from clara.errors import command_line
from training.registry.record import Entry, record_of
from training.registry.store import answers, check_names, open_store, versions_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LINEAGE = ("system", "checkpoint_hash", "memory_hash", "index_hash", "questions_hash", "fingerprint")


def described(client: "MlflowClient", name: str) -> dict[str, Any]:
    """Aliases, versions and the record of promotions, as JSON has them.

    Raises:
        InputError: no version of the model is registered.
    """
    versions = versions_of(client, name)
    aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    return {
        "name": name,
        "aliases": aliases,
        "versions": [
            {
                "version": number,
                "aliases": sorted(alias for alias, holder in aliases.items() if holder == number),
                "registered": datetime.fromtimestamp(versions[number].creation_timestamp / 1000, UTC).isoformat(
                    timespec="seconds"
                ),
                "run_id": versions[number].run_id,
                **{key: versions[number].tags.get(f"clara.{key}", "") for key in _LINEAGE},
            }
            for number in sorted(versions, key=int)
        ],
        "record": [dataclasses.asdict(entry) for entry in record_of(versions.values())],
    }


def as_text(found: dict[str, Any]) -> str:
    """The same as lines of text."""
    lines = [f"{found['name']}"]
    for version in found["versions"]:
        held = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
        lines.append(
            f"  version {version['version']}{held}: system {version['system'] or 'unknown'}, registered "
            f"{version['registered']}, memory {version['memory_hash'][:12] or 'unknown'}, questions "
            f"{version['questions_hash'][:12] or 'unknown'}"
        )
    lines += ["", "Promotions:" if found["record"] else "Promotions: none on record"]
    for record in found["record"]:
        lines += _lines(Entry(**record))
    return "\n".join(lines)


def _lines(entry: Entry) -> list[str]:
    at = datetime.strptime(entry.at, "%Y%m%dT%H%M%S.%fZ").isoformat(sep=" ", timespec="seconds")
    held = f"version {entry.before} held it" if entry.before else "nobody held it"
    lines = [f"  {at} UTC  {entry.alias}: version {entry.version} {entry.outcome} ({held}): {entry.reason}"]
    for floor in entry.floors:
        reached = "reached" if floor["reached"] else "not reached"
        lines.append(
            f"      floor {floor['floor']} {reached}: {floor['difference']:+.4f} [{floor['low']:+.4f}, "
            f"{floor['high']:+.4f}], {floor['num_questions']} questions of {floor['num_targets']} targets"
        )
    return lines


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = Command("training.show_registry", __doc__)
    parser.add_argument("name", metavar="NAME", help="registered model")
    add_setting(parser, "tracking.uri", "--tracking-uri", metavar="URI", required=True)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    check_names(options.name)
    client = open_store(options.tracking_uri)
    with answers(options.tracking_uri):
        found = described(client, options.name)
    print(json.dumps(found, ensure_ascii=False) if options.json else as_text(found))
    return 0


if __name__ == "__main__":
    command_line(main)
