"""Reads units of a corpus: files in all formats, plain or compressed, and parts of them.

Each record that can't be read becomes a dead letter.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import IO, Any
from xml.etree.ElementTree import ParseError

from clara.data.corpus import EMPTY, document_of, records
from clara.data.fields import Fields
from clara.data.ids import spelt_id
from clara.data.json_records import line_records
from clara.data.records import Document, whole_characters
from clara.data.streams import DAMAGE, decompressed, unreadable
from clara.data.table_records import open_parquet, parquet_rows
from pipelines.corpus import mediawiki
from pipelines.corpus.census import Census
from pipelines.corpus.dead_letter import DeadLetter, clean
from pipelines.corpus.files import open_file
from pipelines.corpus.splits import Unit

_SNIPPET_CHARACTERS = 200


def read_unit(unit: Unit, fields: Fields, census: Census | None = None) -> Iterator[Document | DeadLetter]:
    """The documents of a unit, normalised, and a dead letter for each invalid record. Blank lines are skipped.

    A damaged file yields the records before the damage, and one dead letter. The census, if given, counts the rows.
    """
    line = unit.first_line
    try:
        for line, row in read_records(unit, fields, census):
            if census and unit.format not in ("text", "mediawiki"):
                census.add(row)
            yield row if isinstance(row, DeadLetter) else to_document(row, fields, unit.name, line)
    except (*DAMAGE, ParseError) as error:
        yield DeadLetter(unit.name, line, "damaged file", f"unreadable after record {line}: {unreadable(error)}")


def to_document(row: Any, fields: Fields, source: str, line: int) -> Document | DeadLetter:
    """The document of a row; a dead letter if it is invalid."""
    found = document_of(row, source, line, fields)
    if isinstance(found, Document):
        return found
    shown = found.record
    if not isinstance(shown, str | bytes):
        shown = repr(shown)
    shown = shown[: 4 * _SNIPPET_CHARACTERS].decode("utf-8", "replace") if isinstance(shown, bytes) else shown
    given = row.get(fields.of(row).id) if found.reason == EMPTY else None
    snippet, detail = clean(shown[:_SNIPPET_CHARACTERS]), clean(found.detail)[: 2 * _SNIPPET_CHARACTERS]
    return DeadLetter(source, line, found.reason, detail, snippet, document_id="" if given is None else spelt_id(given))


def read_records(unit: Unit, fields: Fields, census: Census | None = None) -> Iterator[tuple[int, Any]]:
    """Line or row number from 1, and the row: an object, `Unusable`, or the dead letter of a wiki's page."""
    with open_file(unit.path) as raw:
        if unit.format == "parquet":
            with decompressed(raw, unit.compression) as stream:
                yield from _parquet_rows(stream, unit, fields, census)
        elif unit.stream:
            yield from _stream_pages(raw, unit, unit.stream, fields)
        elif unit.start or unit.end >= 0:
            raw.seek(unit.start)
            yield from line_records(raw, unit.first_line, unit.end - unit.start if unit.end >= 0 else -1)
        else:
            with decompressed(raw, unit.compression) as stream:
                if unit.format == "mediawiki":
                    yield from _records_of(mediawiki.pages(stream), unit, fields)
                else:
                    yield from records(stream, unit.format, fields, unit.name)


def _parquet_rows(raw: IO[bytes], unit: Unit, fields: Fields, census: Census | None) -> Iterator[tuple[int, Any]]:
    file = open_parquet(raw)
    if file.metadata.num_row_groups:
        names = file.schema_arrow.names
        columns = [name for name in vars(fields.of(names)).values() if name in names]
        if census:
            others = [name for name in names if name not in columns]
            census.add_names(others, file.metadata.row_group(unit.row_group).num_rows)
        yield from enumerate(parquet_rows(file, [unit.row_group], columns), unit.first_line)


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
    number, unread = unit.first_line - 1, {*mediawiki.UNREAD_LINKS, *unit.unread_links}
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
    from mwparserfromhell.parser import ParserError

    from pipelines.corpus.wikitext import plain_text

    try:
        text = whole_characters(plain_text(page.text, unread))
        if not text.strip():  # the title of a page is no text: templates say what such a page is about
            return replace(blank, reason=EMPTY, detail="the page has no prose", document_id=page.id)
        return {fields.id: page.id, fields.title: whole_characters(page.title), fields.text: text}
    except ParserError as error:
        return replace(blank, reason="not wikitext", detail=str(error))
