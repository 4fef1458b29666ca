"""Names that every tracking store takes, and settings as a flat list of them."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_NOT_IN_NAMES, _LONGEST_NAME = re.compile(r"[^/\w.\-]"), 250
"""MLflow's rules for names of parameters, metrics and tags, without spaces; names must be normal relative paths too."""


def tracking_names(names: Iterable[str]) -> dict[str, str]:
    """Each name → the name for the tracking store: `@` becomes `_at_`, spaces and refused characters become `_`.

    Names that would collide, and long names that are cut, end in a part of their hash, so that all results differ.
    """
    cleaned = {name: _cleaned(name) for name in dict.fromkeys(names)}
    shared = Counter(cleaned.values())
    return {
        name: _marked(name, clean) if (name != clean and shared[clean] > 1) or len(clean) > _LONGEST_NAME else clean
        for name, clean in cleaned.items()
    }


def _cleaned(name: str) -> str:
    parts = _NOT_IN_NAMES.sub("_", name.replace("@", "_at_")).split("/")
    return "/".join(part.replace(".", "_") or "_" if part.strip(".") == "" else part for part in parts)


def _marked(name: str, clean: str) -> str:
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{clean[: _LONGEST_NAME - len(mark) - 1]}-{mark}"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings, each with its dotted key."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def flatten(tree: Mapping[str, Any]) -> dict[str, str]:
    """The leaves of nested settings as text, by dotted key."""
    return {name: str(value) for name, value in leaves(tree)}
