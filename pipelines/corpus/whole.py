"""Reads and writes whole corpora in memory, for the small commands."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import ParseError

from clara.data.corpus import EMPTY, check_file, format_of, read_rows, to_document
from clara.data.fields import FIELDS, Fields
from clara.data.input_files import expand
from clara.data.records import Document
from clara.data.streams import DAMAGE, unreadable
from clara.errors import InputError
from clara.storage.cache import local_file
from clara.storage.folders import atomic_write
from pipelines.corpus import census
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.mediawiki import is_index
from pipelines.corpus.readers import read_records
from pipelines.corpus.splits import find_units

_LOG = logging.getLogger(__name__)


def corpus_files(patterns: Sequence[str], fields: Fields = FIELDS) -> list[str]:
    """The files of a corpus, with the columns of its tables checked; see `expand` and `check_file`.

    Raises:
        InputError: a pattern names no file, or a table has other columns.
    """
    files = [path for path in expand(patterns) if not is_index(path)]
    for path in files:
        if format_of(path) != "mediawiki":
            check_file(path, format_of(path), fields)
    return files


def rows_of(
    files: Sequence[str], fields: Fields = FIELDS, also_read: Sequence[str] = (), *, report: bool = True
) -> Iterator[tuple[Any, Document]]:
    """Row and document of each record of files, in order; those without text are left out.

    Args:
        files: as returned by `corpus_files`.
        fields: names of a record's fields.
        also_read: further fields that are read, and so are not reported.
        report: warn at the end of what was left out or not read, with counts.

    Raises:
        InputError: a bad row.
    """
    tallies, empty = Counter[str](), list[str]()
    for path in files:
        found = census.Census(path, fields, also_read)
        for number, row in _file_rows(path, fields):
            if format_of(path) not in ("text", "mediawiki"):
                found.add(row)
            if (document := to_document(row, path, number, fields)) is None:
                empty.append(f"{path}:{number}")
            else:
                yield row, document
        tallies.update(found.tallies())
    if report:
        _report(tallies, empty, fields)


def _report(tallies: Mapping[str, int], empty: Sequence[str], fields: Fields) -> None:
    if empty:
        _LOG.warning("%d rows have neither text nor title, and are left out; the first is %s", len(empty), empty[0])
    plain, noted = census.separated(tallies)
    for name, count in plain.items():
        _LOG.warning("%d %s", count, name)
    if unread := noted.get(census.UNREAD):
        _LOG.warning("fields that are not read: %s", ", ".join(f"`{name}` ({n} rows)" for name, n in unread.items()))
    census.report(noted, fields)


def _file_rows(path: str, fields: Fields) -> Iterator[tuple[int, Any]]:
    if format_of(path) != "mediawiki":
        yield from read_rows(path, fields)
        return
    number = dropped = 0
    try:
        for unit in find_units([str(local_file(path))], "mediawiki", fields):
            for number, row in read_records(unit, fields):
                if not isinstance(row, DeadLetter):
                    yield number, row
                elif row.dropped:
                    dropped += 1
                elif row.reason == EMPTY:
                    yield number, {fields.text: ""}
                else:
                    raise InputError(f"{path}: page {number} ({row.snippet!r}): {row.reason}, {row.detail}")
    except (*DAMAGE, ParseError) as error:
        raise InputError(
            f"{path}: cannot be read after page {number} ({unreadable(error)}); copy the dump again"
        ) from error
    if dropped:
        _LOG.warning("%s: %d pages are redirects or in other namespaces, and are left out", path, dropped)


def read_corpus(files: Sequence[str], fields: Fields = FIELDS) -> list[Document]:
    """The documents of files in order (see `rows_of`), each content once.

    Raises:
        InputError: a bad row, two documents of different content with one id, or no document at all.
    """
    documents: dict[str, Document] = {}
    for _, document in rows_of(files, fields):
        known = documents.setdefault(document.id, document)
        if (known.title, known.text) != (document.title, document.text):
            raise InputError(
                f"{document.source}:{document.line}: id {document.id!r} is at {known.source}:{known.line} with other "
                "content; give each document its own"
            )
    if not documents:
        raise InputError(
            f"{', '.join(files)}: no document; give JSONL, Parquet or plain text, "
            f"with `{fields.title}` and `{fields.text}`"
        )
    return list(documents.values())


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSONL to a path or URL, atomically. Returns their number."""
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    atomic_write(path, "".join(line + "\n" for line in lines))
    return len(lines)
