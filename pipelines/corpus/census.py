"""What a corpus holds beside what is read: rows without an id, and fields that nothing reads.

Each unit of a job counts for itself, in tallies that are summed by name.
"""

import difflib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from clara.data.fields import Fields

NO_ID, UNREAD, FILES_WITHOUT = "rows without an id", "fields not read", "files without ids"
NEAR = "fields like those that are read"
WARNED = (FILES_WITHOUT, NEAR)
"""Counts that `report` puts into words."""
_MOST_NAMES = 50
_MOST_FILES = 20
_LIKE = {  # names that others have for a field, beside those that are spelt nearly alike
    "id": ("_id", "docid", "doc_id", "document_id", "pid", "passage_id", "psg_id", "paper_id", "uuid", "key"),
    "title": ("heading", "headline", "name", "wikipedia_title", "page_title"),
    "text": ("contents", "content", "body", "passage", "passage_text", "document", "abstract", "article"),
}
_LOG = logging.getLogger(__name__)


class Census:
    """Counts over the rows of one file, or of a part of it."""

    def __init__(self, source: str, fields: Fields, also_read: Collection[str] = ()) -> None:
        self._source, self._fields, self._also = source, fields, also_read
        self._rows = self._without = 0
        self._names: dict[str, None] = {}
        self._unread: Counter[str] = Counter()

    def add(self, row: Any) -> None:
        """Count a row, if it is one."""
        if isinstance(row, Mapping):
            fields = self._fields.of(row)
            value = row.get(fields.id)
            self._rows += 1
            self._without += value is None or value in ("", b"") or value != value  # NaN
            self.add_names(name for name, value in row.items() if value is not None and value != "")

    def add_names(self, names: Iterable[str], rows: int = 1) -> None:
        """Count fields that rows have, perhaps beside those that were read of them."""
        for name in names:
            if name in self._names or len(self._names) < _MOST_NAMES:
                self._names[str(name)] = None
                self._unread[str(name)] += rows

    def tallies(self) -> dict[str, int]:
        """The counts under names that `separated` knows."""
        fields = self._fields.of(self._names)
        read = {*vars(fields).values(), *self._also}
        unread = {name: count for name, count in self._unread.items() if name not in read}
        found = {f"{UNREAD}: {name}": count for name, count in unread.items()}
        for role, name in vars(fields).items():
            if name != getattr(self._fields, role):
                found[f"rows whose {role} is `{name}`"] = self._unread[name]
        missing = {role: name for role, name in vars(fields).items() if name not in self._names}
        for name, role in near_misses(unread, missing):
            found[f"{NEAR}: {json.dumps([name, role])}"] = unread[name]
        if self._without:
            key = json.dumps([self._source, self._without == self._rows, list(self._names)])
            found |= {NO_ID: self._without, f"{FILES_WITHOUT}: {key}": self._without}
        return found


def separated(tallies: Mapping[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
    """Tallies of records, and what units counted here: counts for a manifest, none for what does not occur."""
    plain, noted = {}, dict[str, Any]()
    for name, count in sorted(tallies.items()):
        kind, _, rest = name.partition(": ")
        if kind == UNREAD:
            noted.setdefault(UNREAD, {})[rest] = count
        elif kind == NEAR:
            field, role = json.loads(rest)
            noted.setdefault(NEAR, {})[field] = role
        elif kind == FILES_WITHOUT:
            source, every, names = json.loads(rest)
            files = noted.setdefault(FILES_WITHOUT, {})
            if source not in files and len(files) == _MOST_FILES:
                continue
            entry = files.setdefault(source, {"rows": 0, "every row": True, "fields": []})
            entry["rows"] += count
            entry["every row"] &= every
            entry["fields"] = list(dict.fromkeys([*entry["fields"], *names]))
        else:
            plain[name] = count
    return plain, noted


def report(counts: Mapping[str, Any], fields: Fields) -> None:
    """Warn of files without ids, and of fields that look like one that is read and missing."""
    for source, found in counts.get(FILES_WITHOUT, {}).items():
        held = [name for name in found["fields"] if name != fields.id]
        near = near_misses(held, {"id": fields.id})
        _LOG.warning(
            "%s: %s; it has %s. Their ids are hashes of the content, which no question names%s",
            source,
            f"no row has `{fields.id}`" if found["every row"] else f"{found['rows']} rows have no `{fields.id}`",
            ", ".join(f"`{name}`" for name in held) or "nothing else",
            f"; is it --id-field {near[0][0]}?" if near else "; name the field of ids with --id-field",
        )
    for name, role in counts.get(NEAR, {}).items():
        if role != "id" or not counts.get(FILES_WITHOUT):
            _LOG.warning(
                "field `%s` of %d rows is not read; is it the %s? Then name it with --%s-field",
                name,
                counts[UNREAD][name],
                role,
                role,
            )


def near_misses(names: Iterable[str], known: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names that look like that of a known field, with the field's role: `id`, `title` or `text`.

    Args:
        names: of fields that are not read.
        known: role to the name that is read.
    """
    found = []
    for name in names:
        plain = name.strip().casefold()
        for role, read in known.items():
            close = difflib.get_close_matches(plain, [read.casefold()], 1, 0.75)
            if name != read and (close or plain in (role, *_LIKE.get(role, ()))):
                found.append((name, role))
                break
    return found
