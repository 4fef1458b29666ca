"""Names the settings that changed: another recipe has its own directory and begins at step 0."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara.config.tree import Config
from clara.storage.folders import atomic_write
from clara.tracking.names import flatten
from training.loop.run_state import run_states

logger = logging.getLogger(__name__)
RECIPE = "recipe.json"
_MOST_NAMED = 5
_HASH_CHARACTERS = 8


def note_recipe(run: Path, recipe: Mapping[str, Any]) -> None:
    """Keep in a run's directory what determines it."""
    atomic_write(run / RECIPE, json.dumps(recipe, indent=1) + "\n")


def _flat(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A recipe's leaves by dotted key, as a user gives them; of inputs the beginning of the hash."""
    plain: dict[str, Any] = json.loads(json.dumps(recipe))
    inputs = {name: value[:_HASH_CHARACTERS] for name, value in plain["inputs"].items()}
    return flatten(plain["settings"]) | {"backbone.dtype": plain["dtype"]} | inputs


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two complete recipes differ, as `key one → other`. A missing setting has its default."""
    defaults = flatten(json.loads(Config().model_dump_json()))
    one, other = _flat(before), _flat(now)
    pairs = {
        key: [values.get(key, defaults.get(key, "none")) for values in (one, other)]
        for key in sorted(one.keys() | other.keys())
    }
    return [f"{key} {old} → {new}" for key, (old, new) in pairs.items() if old != new]


def warn_of_other_run(output: Path, run: Path, recipe: Mapping[str, Any]) -> None:
    """Warn that this run begins at step 0 beside another run, with the settings that differ (from the most similar)."""
    others = [path for path in sorted(output.glob("run-*")) if path != run and path.is_dir()]
    if not others or run_states(run):
        return
    known = [json.loads((path / RECIPE).read_text(encoding="utf-8")) for path in others if (path / RECIPE).is_file()]
    changed = min((differences(before, recipe) for before in known), key=len, default=[])
    more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
    named = f" ({', '.join(changed[:_MOST_NAMED])}{more})" if changed else ""
    logger.warning("another run of other settings%s is in %s; this one begins at step 0", named, output)
