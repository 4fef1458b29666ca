"""What a corpus holds beside what is read: rows without an id, and fields that nothing reads.

Each unit of a job counts for itself, in tallies that are summed by name.
"""

import difflib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from clara.data.corpus import Fields

NO_ID, UNREAD, FILES_WITHOUT = "rows without an id", "fields not read", "files without ids"
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
        self._source, self._id, self._read = source, fields.id, {*vars(fields).values(), *also_read}
        self._rows = self._without = 0
        self._names: dict[str, None] = {}
        self._unread: Counter[str] = Counter()

    def add(self, row: Any) -> None:
        """Count a row, if it is one."""
        if isinstance(row, Mapping):
            self._rows += 1
            self._without += row.get(self._id) is None or row[self._id] in ("", b"") or row[self._id] != row[self._id]
            self.add_names([name for name, value in row.items() if value not in (None, "")])

    def add_names(self, names: Iterable[str], rows: int = 1) -> None:
        """Count fields that rows have, perhaps beside those that were read of them."""
        for name in names:
            if name in self._names or len(self._names) < _MOST_NAMES:
                self._names[str(name)] = None
                if name not in self._read:
                    self._unread[name] += rows

    def tallies(self) -> dict[str, int]:
        """The counts under names that `separated` knows."""
        found = {f"{UNREAD}: {name}": count for name, count in self._unread.items()}
        if self._without:
            key = json.dumps([self._source, self._without == self._rows, list(self._names)])
            found |= {NO_ID: self._without, f"{FILES_WITHOUT}: {key}": self._without}
        return found


def separated(tallies: Mapping[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
    """Tallies of records, and what units counted here: counts for a manifest, none for what does not occur."""
    plain, unread, files = {}, Counter[str](), dict[str, dict[str, Any]]()
    for name, count in sorted(tallies.items()):
        kind, _, rest = name.partition(": ")
        if kind == UNREAD:
            unread[rest] += count
        elif kind == FILES_WITHOUT:
            source, every, names = json.loads(rest)
            entry = files.setdefault(source, {"rows": 0, "every row": True, "fields": []})
            entry["rows"] += count
            entry["every row"] &= every
            entry["fields"] = list(dict.fromkeys([*entry["fields"], *names]))
        else:
            plain[name] = count
    noted: dict[str, Any] = {UNREAD: dict(unread)} if unread else {}
    if files:
        noted[FILES_WITHOUT] = dict(list(files.items())[:_MOST_FILES])
    return plain, noted


def report(counts: Mapping[str, Any], fields: Fields) -> None:
    """Warn of files without ids, and of fields that look like one that is read."""
    for source, found in counts.get(FILES_WITHOUT, {}).items():
        held = [name for name in found["fields"] if name != fields.id]
        near = near_misses(held, {"id": fields.id})
        _LOG.warning(
            "%s: %s; it has %s. Their ids are hashes of the content, which no question names%s",
            source,
            f"no row has `{fields.id}`" if found["every row"] else f"{found['rows']} rows have no `{fields.id}`",
            ", ".join(f"`{name}`" for name in held) or "nothing else",
            f"; is it --id-field {near[0][0]}?"
            if near
            else f"; name the field of ids with --id-field, not {fields.id}",
        )
    unread = counts.get(UNREAD, {})
    for name, meant in near_misses(unread, vars(fields)):
        if meant != "id" or not counts.get(FILES_WITHOUT):
            _LOG.warning(
                "field `%s` of %d rows is not read; is it the %s? Then name it with --%s-field",
                name,
                unread[name],
                meant,
                meant,
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
