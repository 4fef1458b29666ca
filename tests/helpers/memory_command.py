"""The corpus command on small corpora, and what it writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clara.storage.folders import sha256_file

Build = Callable[..., Path]


def command(given: str, output: Path, checkpoint: Path, *arguments: str) -> list[str]:
    return ["--input", given, "--output", str(output), "--checkpoint", str(checkpoint), "--dtype=float32", *arguments]


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def dead_letters(memory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (memory / "dead_letters.jsonl").read_text().splitlines()]


def shard_bytes(memory: Path) -> dict[str, str]:
    return {
        str(p.relative_to(memory)): sha256_file(p) for p in sorted(memory.glob("shard-*/*")) if p.name != "plan.json"
    }
