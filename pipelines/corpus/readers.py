"""Reads units of a corpus: JSONL, JSON arrays, Parquet, plain text and MediaWiki dumps, plain or compressed.

Each record that can't be read becomes a dead letter.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import IO, Any
from xml.etree.ElementTree import ParseError

import pyarrow.parquet as pq
from mwparserfromhell.parser import ParserError

from clara.data.corpus import DAMAGE, Fields, decompressed
from clara.data.records import Document, document_id, normalise
from pipelines.corpus import mediawiki
from pipelines.corpus.dead_letter import DeadLetter, clean
from pipelines.corpus.files import open_file
from pipelines.corpus.splits import Unit
from pipelines.corpus.wikitext import UNREAD_LINKS, plain_text

MAX_RECORD_BYTES = 64 * 2**20
_SNIPPET_CHARACTERS = 200
_PARQUET_ROWS = 1024  # of a row group in memory at once


def read_unit(unit: Unit, fields: Fields) -> Iterator[Document | DeadLetter]:
    """The documents of a unit, normalised, and a dead letter for each invalid record. Blank lines are skipped.

    A damaged file yields the records before the damage, and one dead letter.
    """
    line = unit.first_line
    try:
        for line, raw in _records(unit, fields):
            yield to_document(raw, fields, unit.name, line)
    except (*DAMAGE, ParseError) as error:
        yield DeadLetter(
            unit.name, line, "damaged file", f"unreadable after record {line}: {type(error).__name__}: {error}"
        )


def to_document(raw: Any, fields: Fields, source: str, line: int) -> Document | DeadLetter:
    """A record, given as bytes of JSON or an object, as a document; a dead letter if it is invalid."""

    def dead(reason: str, detail: str) -> DeadLetter:
        shown = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else repr(raw)
        return DeadLetter(source, line, reason, detail, clean(shown[:_SNIPPET_CHARACTERS]))

    if isinstance(raw, DeadLetter):
        return raw
    row = raw
    if isinstance(raw, bytes):
        try:
            row = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            return dead("not UTF-8", str(error))
        except (ValueError, RecursionError) as error:
            return dead("not JSON", str(error))
    if not isinstance(row, dict):
        return dead("not an object", f"found {type(row).__name__}, expected a JSON object")
    text, title, found_id = row.get(fields.text), row.get(fields.title), row.get(fields.id)
    if text is None:
        return dead(
            "no text", f"no field {fields.text!r}; fields are {clean(', '.join(map(str, row)))[:_SNIPPET_CHARACTERS]}"
        )
    for name, value in ((fields.text, text), (fields.title, title)):
        if value is not None and not isinstance(value, str):
            return dead("text not a string", f"field {name!r} is {type(value).__name__}, expected a string")
    if found_id is not None and not isinstance(found_id, str | int):
        return dead(
            "id not a string", f"field {fields.id!r} is {type(found_id).__name__}, expected a string or an integer"
        )
    try:
        f"{text}{title}{found_id}".encode()
    except UnicodeEncodeError as error:
        return dead("not Unicode", f"a lone surrogate: {error}")
    title, text = normalise(title or ""), normalise(text)
    if not text:
        letter = dead("empty text", f"field {fields.text!r} holds nothing but white space or control characters")
        return replace(letter, document_id="" if found_id is None else str(found_id))
    return Document(document_id(title, text) if found_id in (None, "") else str(found_id), title, text, source, line)


def _records(unit: Unit, fields: Fields) -> Iterator[tuple[int, Any]]:
    """Line or row number from 1, and the record: bytes of JSON, an object, or a dead letter."""
    with open_file(unit.path) as raw:
        if unit.format == "parquet":
            yield from _parquet_rows(raw, unit, fields)
            return
        if unit.stream:
            yield from _stream_pages(raw, unit, unit.stream, fields)
            return
        with decompressed(raw, unit.compression) as stream:
            if unit.format == "jsonl":
                yield from _lines(stream, unit)
            elif unit.format == "mediawiki":
                yield from _records_of(mediawiki.pages(stream), unit, fields)
            elif unit.format == "json":
                yield from _array(stream.read(), unit)
            else:
                yield 1, _whole_text(stream.read(MAX_RECORD_BYTES + 1), unit, fields)


def _lines(stream: IO[bytes], unit: Unit) -> Iterator[tuple[int, bytes | DeadLetter]]:
    number, end = unit.first_line - 1, unit.end
    if unit.start:
        stream.seek(unit.start)
    while (end < 0 or stream.tell() < end) and (line := stream.readline(MAX_RECORD_BYTES)):
        number += 1
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            snippet = clean(line[:_SNIPPET_CHARACTERS].decode("utf-8", "replace"))
            while (rest := stream.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield (
                number,
                DeadLetter(
                    unit.name, number, "record too long", f"a line of more than {MAX_RECORD_BYTES} bytes", snippet
                ),
            )
        elif line.strip():
            yield number, line


def _array(data: bytes, unit: Unit) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield (
            1,
            DeadLetter(
                unit.name, 1, "not JSON", str(error), clean(data[:_SNIPPET_CHARACTERS].decode("utf-8", "replace"))
            ),
        )
        return
    yield from enumerate(rows if isinstance(rows, list) else [rows], 1)


def _whole_text(data: bytes, unit: Unit, fields: Fields) -> Mapping[str, str] | DeadLetter:
    snippet = clean(data[:_SNIPPET_CHARACTERS].decode("utf-8", "replace"))
    if len(data) > MAX_RECORD_BYTES:
        return DeadLetter(
            unit.name, 1, "record too long", f"a file of more than {MAX_RECORD_BYTES} bytes; use JSONL", snippet
        )
    try:
        return {fields.text: data.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return DeadLetter(unit.name, 1, "not UTF-8", str(error), snippet)


def _parquet_rows(raw: IO[bytes], unit: Unit, fields: Fields) -> Iterator[tuple[int, Mapping[str, Any]]]:
    file = pq.ParquetFile(raw)
    if not file.metadata.num_row_groups:
        return
    columns = [name for name in (fields.id, fields.title, fields.text) if name in file.schema_arrow.names]
    # Without the text column each row becomes a dead letter that lists the columns of the file.
    wanted = columns if fields.text in columns else None
    number = unit.first_line
    for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[unit.row_group], columns=wanted):
        yield from enumerate(batch.to_pylist(), number)
        number += len(batch)


def _stream_pages(
    raw: IO[bytes], unit: Unit, stream: mediawiki.Stream, fields: Fields
) -> Iterator[tuple[int, Mapping[str, str] | DeadLetter]]:
    """The pages of a part of a dump, and a dead letter if their number differs from the index."""
    number = stream.first_page - 1
    for number, record in _records_of(mediawiki.part_pages(raw, stream), unit, fields):
        yield number, record
    found = number + 1 - stream.first_page
    if found != stream.num_pages:
        detail = f"{found} pages in the stream at byte {stream.start}, its index lists {stream.num_pages}"
        yield number, DeadLetter(unit.name, number, "damaged file", detail)


def _records_of(
    pages: Iterator[mediawiki.Page | str], unit: Unit, fields: Fields
) -> Iterator[tuple[int, Mapping[str, str] | DeadLetter]]:
    number, unread = unit.first_line - 1, {*UNREAD_LINKS, *unit.unread_links}
    for page in pages:
        if isinstance(page, str):
            unread.add(page)
            continue
        number += 1
        yield number, _of_page(page, DeadLetter(unit.name, number, "", "", clean(page.title)), unread, fields)


def _of_page(
    page: mediawiki.Page, blank: DeadLetter, unread: Collection[str], fields: Fields
) -> Mapping[str, str] | DeadLetter:
    """The fields of a page, or `blank` completed with the reason why the page is excluded."""
    if page.namespace != "0":
        return replace(
            blank, reason="other namespace", detail=f"namespace {page.namespace}, articles have 0", dropped=True
        )
    if page.redirect:
        return replace(blank, reason="redirect", detail="the page only names another one", dropped=True)
    if page.text is None:
        return replace(blank, reason="no text", detail="the dump has no text of the page's revision")
    try:
        return {fields.id: page.id, fields.title: page.title, fields.text: plain_text(page.text, unread)}
    except ParserError as error:
        return replace(blank, reason="not wikitext", detail=str(error))
