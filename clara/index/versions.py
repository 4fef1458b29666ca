"""What the INDEX of a new MEMORY version takes over from the one before."""

from typing import Any

from clara.index.recall import FLOOR, RECALL_FLOOR
from clara.index.search import KIND
from clara.index.words import NAME
from clara.storage.artefact import Artefact
from clara.storage.paths import Name


def next_settings(index_dir: str, factory: str) -> dict[str, Any]:
    """Settings that the next version's INDEX inherits: recall floor, and kind and probes unless `factory` differs."""
    if not index_dir:
        return {"factory": factory}
    made_by = Artefact.open(index_dir, KIND, lazy=True).manifest["made_by"]
    recipe = made_by["recipe"]
    same = factory in ("auto", recipe["factory"])
    return {
        "factory": recipe["factory"] if same else factory,
        "probes": recipe["probes"] if same else 0,
        FLOOR: made_by.get(FLOOR, RECALL_FLOOR),
    }


def has_words(index: Name) -> bool:
    """Whether an INDEX has a words part."""
    return bool(Artefact.open(index, KIND, lazy=True).manifest.get(NAME))
