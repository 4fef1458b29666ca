"""The synthesis command against a language model of the tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clara.data.examples import FILE
from clara.storage.folders import sha256_file
from clara.storage.manifest import manifest_hash
from tests.helpers.artefacts import verify
from tests.helpers.language_model import LanguageModel

Run = Callable[..., Path]
NUM_DOCUMENTS = 12


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(corpus: Path, output: Path, model: LanguageModel | Path, *arguments: str) -> list[str]:
    url = model.url if isinstance(model, LanguageModel) else str(model)
    given = ["--input", str(corpus), "--output", str(output), "--model", url, *arguments]
    return given if any(a.startswith("--num-workers") for a in arguments) else [*given, "--num-workers=1"]


def letters(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "dead_letters.jsonl").read_text(encoding="utf-8").splitlines()]


def same(output: Path, other: Path) -> bool:
    verify(output, "EXAMPLES")
    return manifest_hash(output) == manifest_hash(other) and sha256_file(output / FILE) == sha256_file(other / FILE)
