"""Ask which locked packages have known vulnerabilities, and say so where nobody could be asked.

    python -m infra.images.audit

Runs `pip-audit --strict` on each lock in requirements/. Ends with 0: asked, none known; 1: some known; 2: not run,
as its service is out of reach.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara.config.flags import plain_parser
from clara.errors import command_line
from clara.own_wheel import source_tree
from infra.images.locks import STAGES, versions
from infra.images.programs import program

NONE_KNOWN, KNOWN, NOT_RUN = 0, 1, 2


def answer(lock: Path, output: str, errors: str) -> tuple[int, list[str]]:
    """What pip-audit found out about a lock, as an exit status and lines.

    It has asked if it lists every package of the lock, each with its vulnerabilities; a package that it skipped was
    not asked about.

    Args:
        lock: the file.
        output: what it printed, JSON if it came to an end.
        errors: what it complained of.
    """
    wanted = versions(lock.read_text(encoding="utf-8"))
    try:
        listed: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        listed = []
    asked = {part["name"]: part["vulns"] for part in listed if "vulns" in part}
    if known := {name: vulns for name, vulns in asked.items() if vulns}:
        lines = [
            f"{lock.name}: {name} {wanted.get(name, '')}: {vuln['id']}, fixed in {', '.join(vuln['fix_versions'])}"
            for name, vulns in known.items()
            for vuln in vulns
        ]
        return KNOWN, lines
    if missing := sorted(wanted.keys() - asked.keys()):
        reason = " ".join(errors.split())[-300:] or "no answer"
        return NOT_RUN, [f"{lock.name}: not run: {len(missing)} of {len(wanted)} packages not asked about: {reason}"]
    return NONE_KNOWN, [f"{lock.name}: {len(wanted)} packages, no known vulnerability"]


def main(argv: Sequence[str]) -> int:
    """The command line."""
    plain_parser("infra.images.audit", __doc__).parse_args(argv)
    status = NONE_KNOWN
    for stage in STAGES:
        lock = source_tree() / "requirements" / f"{stage}.txt"
        command = [program("pip-audit"), "--strict", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
        command += ["--format", "json", "--requirement", str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found, lines = answer(lock, done.stdout, done.stderr)
        print("\n".join(lines), file=sys.stderr if found else sys.stdout)
        status = found if status == NONE_KNOWN or found == KNOWN else status
    return status


if __name__ == "__main__":
    command_line(main)
