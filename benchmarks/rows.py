"""Command line and report of the benchmarks over a synthetic MEMORY of many rows."""

import argparse
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.config.flags import plain_parser
from clara.storage.folders import atomic_write
from clara.storage.manifest import versions
from infra.hardware import processor


def rows_parser(
    module: str, doc: str | None, *, folder: str, results: str, limit_seconds: float = 3600.0
) -> argparse.ArgumentParser:
    """A parser with the flags that all of them have.

    Args:
        module: of the command.
        doc: its docstring.
        folder: what the data folder holds, and how large that is.
        results: name of the folder of its reports in infra/results.
        limit_seconds: longest time of one process.
    """
    found = plain_parser(module, doc)
    add = found.add_argument
    add("--rows", type=int, default=1_000_000, help="rows of the synthetic MEMORY (default: %(default)s)")
    add("--folder", required=True, metavar="DIR", help=folder)
    add(
        "--limit-seconds",
        type=float,
        default=limit_seconds,
        help="longest time of one process (default: %(default)s)",
    )
    add("--results", default=f"infra/results/{results}", metavar="DIR", help="for the report (default: %(default)s)")
    add("--note", action="append", default=[], help="a sentence for the report; repeatable (default: none)")
    add("--dry-run", action="store_true", help="print the settings and stop")
    return found


def rows_folder(options: argparse.Namespace) -> Path | None:
    """The folder for the data of so many rows; None after a dry run, which prints the settings."""
    if options.dry_run:
        print(json.dumps(vars(options), indent=1))
        return None
    folder = Path(options.folder) / str(options.rows)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rows_file(options: argparse.Namespace) -> Path:
    """The report's file, without its ending."""
    return Path(options.results) / f"{options.rows // 1000}k-rows"


def described(module: str, argv: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """What a report says of its command and its machine; the data folder's name is left out."""
    given = ["DIR" if part == options.folder else part for part in argv]
    return {
        "command": shlex.join(["python", "-m", module, *given]),
        "rows": options.rows,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {processor()}",
        "versions": versions(),
        "load_average": load_average(),
    }


def load_average() -> list[float]:
    """The machine's load."""
    return [round(load, 1) for load in os.getloadavg()]


def save_rows(options: argparse.Namespace, found: Mapping[str, Any], markdown: str) -> None:
    """Write a report as JSON and as Markdown."""
    file = rows_file(options)
    atomic_write(file.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    atomic_write(file.with_suffix(".md"), markdown)
