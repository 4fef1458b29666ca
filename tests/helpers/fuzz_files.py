"""Reads many damaged files of each format in one process, and writes what became of them.

python -m tests.helpers.fuzz_files --output infra/results/release/fuzz.txt
python -m tests.helpers.fuzz_files --count 100000 --seconds 3600

Each file is a mutation of a right one, by a stored seed (`tests/helpers/mutation.py`). It gives records, counted dead
letters or one line that names it, never a stack or another number of records than it has. A failure is printed with the
mutated file, which repeats it in a test.
"""

import argparse
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.helpers import fuzzed_corpora as corpora
from tests.helpers import fuzzed_questions as questions
from tests.helpers.mutation import SEED, Fuzzed

Run = Callable[[str, Path, int, float], Fuzzed]
KINDS: dict[str, tuple[Run, list[str]]] = {
    "corpus": (corpora.run, list(corpora.FILES)),
    "questions": (questions.run, list(questions.FILES)),
}


def report(kind: str, name: str, run: Run, count: int, seconds: float) -> tuple[str, bool]:
    """The line of one file, and whether all was right."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = run(name, Path(folder), count, time.monotonic() + seconds)
        except AssertionError as error:
            return f"{kind:9} {name:24} FAILED {str(error)[:2000]} ({error.__cause__!r:.500})", False
    each = 1000 * found.seconds / max(1, found.files)
    refused = found.files - found.read
    return f"{kind:9} {name:24} {found.files:7} files {found.read:7} read {refused:7} refused {each:6.2f} ms", True


def main() -> int:
    """The command line; status 1 if a file was read wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="mutated files of each right one (default 10000)")
    parser.add_argument("--seconds", type=float, default=600.0, help="most seconds for each right one (default 600)")
    parser.add_argument("--output", type=Path, help="file to write the lines to as well")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # of fields that are not read
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    day = datetime.now(UTC).date()
    lines = [f"{day} {commit.stdout.strip()} seed {SEED}, {options.count} files each, {os.cpu_count()} cores"]
    rights: list[bool] = []
    print(lines[0], flush=True)
    for kind, (run, names) in KINDS.items():
        for name in names:
            line, right = report(kind, name, run, options.count, options.seconds)
            print(line, flush=True)
            lines.append(line)
            rights.append(right)
    lines.append(f"{sum(rights)} of {len(rights)} right")
    print(lines[-1])
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if all(rights) else 1


if __name__ == "__main__":
    raise SystemExit(main())
