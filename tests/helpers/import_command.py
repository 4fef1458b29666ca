"""The import command on a made-up published checkpoint, and the model that it makes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from clara.config.model import Backbone
from clara.import_reference import command as import_reference
from clara.model.checkpoint import load_checkpoint
from clara.model.model import ClaraModel
from tests.helpers.published_cases import CASES

PLAIN = CASES["mistral-without-separator"]
SMALL = replace(PLAIN, config={"doc_max_length": 30, "compr_rate": 10, "lora_r": 4})


def run(checkpoint: Path, base: Path, output: Path, *arguments: str) -> Path:
    """The command; returns its output."""
    assert (
        import_reference.main(
            ["--checkpoint", str(checkpoint), "--base", str(base), "--output", str(output), *arguments]
        )
        == 0
    )
    return output


def load(checkpoint: Path, base: Path) -> ClaraModel:
    return load_checkpoint(checkpoint, Backbone(path=str(base), dtype="float32")).eval()


def change_config(checkpoint: Path, **fields: Any) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | fields))
