"""The node of the configuration tree that every section is."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen node of the tree that knows all of its keys, and takes finite numbers alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def given(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Dotted keys below `prefix` that were set explicitly, with their values; of a table each entry."""
        for name in type(self).model_fields:
            if name not in self.model_fields_set:
                continue
            value, key = getattr(self, name), f"{prefix}{name}"
            if isinstance(value, Section):
                yield from value.given(f"{key}.")
            elif isinstance(value, dict):
                yield from ((f"{key}.{entry}", inner) for entry, inner in value.items())
            else:
                yield key, value


def near_entries(name: str, context: Mapping[str, Any]) -> str:
    """Keys of a table, as pydantic lists them (`'a', 'b' or 'c'`): the similar ones; if none is similar, all."""
    names = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names)
