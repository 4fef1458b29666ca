"""Show a registered model: its versions, who holds which alias, and why.

python -m training.show_registry NAME --tracking-uri sqlite:///PATH
"""

import argparse
import json
from datetime import datetime
from typing import Any

from clara.config.flags import Command, add_setting
from clara.errors import command_line
from training.registry.description import described
from training.registry.record import Entry
from training.registry.store import answers, check_names, open_store


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
