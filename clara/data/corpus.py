"""Corpus files in all formats but MediaWiki dumps: records, and documents with `text`, `title` and `id`."""

import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

import pyarrow as pa

from clara.data.fields import FIELDS, Fields
from clara.data.ids import spelt_id
from clara.data.json_records import MAX_RECORD_BYTES, json_records
from clara.data.records import Document, Unusable, document_id, normalise
from clara.data.streams import COMPRESSIONS, as_utf8, opened
from clara.data.table_records import check_schema, open_parquet, parquet_rows, table_records
from clara.errors import InputError

FORMATS = ("jsonl", "json", "parquet", "csv", "tsv", "text", "mediawiki")
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".xml": "mediawiki",
}
"""Format of a file by the ending of its name, without that of a compression."""

_PARQUET = b"PAR1"
_TITLE_LINE = re.compile(r'\s*"(?P<title>[^\n]*)"\r?\n(?P<text>.*)', re.DOTALL)
_PAGE_RANGE = re.compile(r"-p\d+p\d+$")  # of a dump in several files
EMPTY = "empty text"
"""Reason of a record that has the fields of a document, but no text in them."""


def format_by_content(head: bytes) -> str:
    """The format of a file by its first bytes; empty: unknown."""
    return parquet_or("jsonl" if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") else "", head)


def parquet_or(kind: str, head: bytes) -> str:
    """Parquet if the first bytes of a file say so, whatever its name; else `kind`."""
    return "parquet" if head.startswith(_PARQUET) else kind


def _head(stream: IO[bytes]) -> bytes:
    return cast(io.BufferedReader, stream).peek(len(_PARQUET))


def format_of(path: str) -> str:
    """The format of a file by its name; empty: unknown."""
    stem, suffix = os.path.splitext(path.lower())
    if suffix in COMPRESSIONS:
        suffix = os.path.splitext(_PAGE_RANGE.sub("", stem))[1]
    return SUFFIXES.get(suffix, "")


# --- records ---------------------------------------------------------------------------------------------------------


def records(stream: IO[bytes], kind: str, fields: Fields, path: str) -> Iterator[tuple[int, Any]]:
    """Number (line or row, from 1) and row of each record of a file; `Unusable` in place of a bad one.

    Args:
        stream: the file's content, decompressed, from its beginning.
        kind: one of `FORMATS` but parquet and mediawiki.
        fields: names of a record's fields; a text file is one record with nothing but its text.
        path: for messages.

    Raises:
        InputError: the first line of a table does not name the columns.
        OSError: one of `DAMAGE`.
    """
    stream = as_utf8(stream)
    try:
        if kind == "text":
            yield 1, _whole_text(stream, fields)
        elif kind in ("csv", "tsv"):
            yield from table_records(stream, kind, path, fields)
        else:
            yield from json_records(stream, fields.text, long_lines=kind == "json")
    except UnicodeError as error:  # of UTF-16, which is decoded while it is read
        yield 1, Unusable("not UTF-16", str(error))


def _whole_text(stream: IO[bytes], fields: Fields) -> Mapping[str, str] | Unusable:
    data = stream.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        return Unusable("record too long", f"a file of more than {MAX_RECORD_BYTES} bytes; use JSONL", data)
    try:
        return {fields.text: data.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return Unusable("not UTF-8", f"{error}; convert it, as with iconv -f WINDOWS-1252 -t UTF-8", data)


def check_file(path: str, kind: str, fields: Fields) -> None:
    """Check, by the beginning of a file, that its columns can be read: the schema of Parquet, the names of a table.

    A damaged file passes: reading it reports the damage.

    Raises:
        InputError: they cannot; or the file is a MediaWiki dump, which only corpus jobs read.
    """
    if kind == "mediawiki":
        raise InputError(
            f"{path}: a MediaWiki dump; only pipelines.build_memory and pipelines.synthesize read these. Make JSONL of "
            "its articles"
        )
    if kind not in ("parquet", "csv", "tsv"):
        return
    with opened(path) as stream:
        kind = parquet_or(kind, _head(stream))
        if kind != "parquet":
            next(table_records(as_utf8(stream), kind, path, fields), None)
            return
        try:
            schema = open_parquet(stream).schema_arrow
        except (OSError, pa.ArrowException):
            return
    check_schema(path, schema, fields)


def all_records(path: str, fields: Fields = FIELDS) -> Iterator[tuple[int, Any]]:
    """Number and row of each record of a file, `Unusable` in place of a bad one; without a known ending, JSON is read.

    Raises:
        InputError: the file is damaged, or as raised by `check_file` for a table's names.
    """
    with opened(path) as stream:
        kind = parquet_or(format_of(path) or "jsonl", _head(stream))
        if kind == "parquet":
            yield from enumerate(parquet_rows(open_parquet(stream)), 1)
        else:
            yield from records(stream, kind, fields, path)


def read_rows(path: str, fields: Fields = FIELDS) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (line or row, from 1) and object of each record of a file; empty lines are skipped.

    A file is JSON in any shape (see `json_records`), Parquet (`.parquet`), CSV or TSV, or plain text (`.txt`, `.text`,
    `.md`: one document, with nothing but its text, under the name that `fields` has for it).

    Raises:
        InputError: a record is not a JSON object in UTF-8, or the file is damaged.
    """
    for number, row in all_records(path, fields):
        yield number, _object(row, path, number)


def _object(row: Any, path: str, number: int) -> dict[str, Any]:
    if isinstance(row, Unusable):
        shown = row.record[:60].decode("utf-8", "replace") if isinstance(row.record, bytes) else row.record[:60]
        kind = format_of(path)
        expected = {"text": "text in UTF-8", "csv": "a row of the table", "tsv": "a row of the table"}
        raise InputError(
            f"{path}:{number}: {shown!r}: not {'JSON' if kind not in expected else 'text'} in UTF-8 ({row.detail}); "
            f"expected {expected.get(kind, 'one object a line')}"
            if row.reason in ("not JSON", "not UTF-8", "not UTF-16")
            else f"{path}:{number}: {shown!r}: {row.reason}, {row.detail}"
        )
    if not isinstance(row, dict):
        raise InputError(f"{path}:{number}: {row!r:.60}: expected a JSON object")
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which could not be written again
        raise InputError(
            f"{path}:{number}: {row!r:.60}: not JSON in UTF-8 ({error}); expected whole characters"
        ) from error
    return row


# --- documents -------------------------------------------------------------------------------------------------------


def document_of(row: Any, source: str, line: int, fields: Fields = FIELDS) -> Document | Unusable:
    """The normalised document of a row, or why there is none.

    A title without a text is the text. Without an id, the hash of the content is the id. In a text that FlashRAG calls
    `contents`, a quoted first line is the title.
    """
    if isinstance(row, Unusable):
        return row
    if not isinstance(row, dict):
        return Unusable("not an object", f"found {type(row).__name__}, expected a JSON object", row)
    fields = fields.of(row)
    if fields.text not in row or (row[fields.text] is None and fields.title not in row):
        return Unusable("no text", f"no field {fields.text!r}; fields are {', '.join(map(str, row))}", row)
    try:
        title, text = _title(row.get(fields.title), fields.title), _text(row[fields.text], fields.text)
    except UnicodeDecodeError as error:
        return Unusable("not UTF-8", str(error), row)
    except ValueError as error:
        return Unusable("text not a string", str(error), row)
    try:
        name = spelt_id(row.get(fields.id))
    except ValueError as error:
        return Unusable("id not a string", f"field {fields.id!r}: {error}", row)
    try:
        f"{text}{title}{name}".encode()
    except UnicodeEncodeError as error:
        return Unusable("not Unicode", f"a lone surrogate: {error}", row)
    if fields.text == "contents" and not title and (found := _TITLE_LINE.fullmatch(text)):
        title, text = found["title"], found["text"]
    title, text = normalise(title), normalise(text)
    if not text:
        title, text = "", title
    if not text:
        detail = f"field {fields.text!r} holds nothing but white space or control characters"
        return Unusable(EMPTY, detail, row)
    return Document(name or document_id(title, text), title, text, source, line)


def _title(value: Any, name: str) -> str:
    """A title of a row, which may be a whole number, as `1984`; see `_text`."""
    if isinstance(value, list):
        raise ValueError(f"{name} is {value!r:.60}; expected a string")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value, name)


def _text(value: Any, name: str) -> str:
    """A text of a row; bytes are UTF-8, and strings in a list its paragraphs, as in KILT's source of knowledge.

    Raises:
        ValueError: it is something else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.60}; expected a string")
    return value


def to_document(row: Any, source: str, line: int, fields: Fields = FIELDS) -> Document | None:
    """A normalised document of a row, see `document_of`; None for a row whose text and title are empty.

    Raises:
        InputError: the text is missing or no string, or the title or id is of another type.
    """
    found = document_of(row, source, line, fields)
    if isinstance(found, Document):
        return found
    if found.reason == EMPTY:
        return None
    if found.reason == "no text":
        raise InputError(
            f"{source}:{line}: no `{fields.text}` (fields: {', '.join(sorted(row)) or 'none'}); every document needs "
            "one"
        )
    raise InputError(f"{source}:{line}: {found.detail}")
