"""Figures by step, as a run appends them to its metrics file: one JSON object on a line."""

import json
from collections.abc import Iterable
from pathlib import Path


def append(path: Path, step: int, values: dict[str, float]) -> None:
    """Add the figures of a step (1-based)."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": step, **values}) + "\n")


def parse(lines: Iterable[str]) -> dict[int, dict[str, float]]:
    """Figures by step, ascending. A step made again after a resume counts once, the last time; a line cut short by a kill is left out."""
    steps: dict[int, dict[str, float]] = {}
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        steps[int(values.pop("step"))] = values
    return dict(sorted(steps.items()))


def read(path: Path) -> dict[int, dict[str, float]]:
    """Figures by step of a file; none where there is no file."""
    return parse(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else {}
