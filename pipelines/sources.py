"""Corpus files as documents: JSONL (plain, gzip, bz2, zstd), JSON arrays, Parquet and plain text. What can't be read is told, never dropped."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from clara.artefact import sha256_file
from clara.corpus import COMPRESSIONS, decompressed
from clara.errors import InputError
from clara.records import Document, document_id, normalise

FORMATS = ("jsonl", "json", "parquet", "text")
MAX_RECORD_BYTES = 64 * 2**20
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".txt": "text", ".text": "text", ".md": "text"}
_SNIPPET_CHARACTERS = 200


@dataclass(frozen=True)
class Fields:
    """Names of a record's fields."""

    id: str = "id"
    title: str = "title"
    text: str = "text"


@dataclass(frozen=True)
class Unit:
    """A piece of work for one reader: a file, or one row group of a Parquet file.

    Attributes:
        path: what is opened.
        name: how the user named it; stands in every record as its source.
        format: one of `FORMATS`.
        compression: `gzip`, `bz2`, `zstd` or empty.
        row_group: of a Parquet file.
        first_line: number of the unit's first row.
    """

    path: str
    name: str
    format: str
    compression: str = ""
    row_group: int = 0
    first_line: int = 1


@dataclass(frozen=True)
class DeadLetter:
    """A record that could not be used: where it stands, the kind of failure (counted), what happened, and how the record begins."""

    source: str
    line: int
    reason: str
    detail: str
    snippet: str = ""


def find_units(patterns: Sequence[str], file_format: str) -> list[Unit]:
    """The units that globs name, by path, each once.

    Args:
        patterns: local paths (relative ones too) or URLs that Beam's file systems know.
        file_format: one of `FORMATS`, or `auto`: by the file name's ending.

    Raises:
        InputError: a glob that matches nothing, an unknown ending, or an unknown format.
    """
    if file_format not in ("auto", *FORMATS):
        raise InputError(f"--format {file_format!r}: expected auto, {', '.join(FORMATS)}")
    names: dict[str, str] = {}
    for pattern in patterns:
        local = "://" not in pattern
        relative = local and not os.path.isabs(pattern)
        try:
            found = FileSystems.match([os.path.abspath(pattern) if local else pattern])[0].metadata_list
        except (BeamIOError, ValueError) as error:
            raise InputError(
                f"--input {pattern!r}: cannot be listed ({error}); correct the path, or install Beam's extra for this kind"
            ) from error
        paths = [entry.path for entry in found if not (local and os.path.isdir(entry.path))]
        if not paths:
            raise InputError(f"--input {pattern!r}: no such file; give a file or a quoted glob, as 'corpus/*.jsonl'")
        for path in paths:
            names.setdefault(path, os.path.relpath(path) if relative else path)
    return [unit for path in sorted(names) for unit in _units_of(path, names[path], file_format)]


def _units_of(path: str, name: str, file_format: str) -> list[Unit]:
    stem, suffix = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]
    kind = _SUFFIXES.get(suffix, "") if file_format == "auto" else file_format
    if not kind:
        raise InputError(
            f"{name}: its format is not known from its name ({', '.join(_SUFFIXES)}, with {', '.join(COMPRESSIONS)}); give --format"
        )
    if kind != "parquet":
        return [Unit(path, name, kind, compression)]
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            metadata = pq.ParquetFile(stream).metadata
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except (OSError, pa.ArrowException):
        return [Unit(path, name, kind)]  # the reader will say what is wrong, as a dead letter
    return [Unit(path, name, kind, row_group=group, first_line=1 + sum(rows[:group])) for group in range(len(rows))]


def describe(units: Sequence[Unit]) -> list[dict[str, Any]]:
    """What the input is, for a recipe: name and sha256 of local files; size and time of change of remote ones."""
    described = []
    for path, name in sorted({(unit.path, unit.name) for unit in units}):
        if "://" in path:
            entry = FileSystems.match([path])[0].metadata_list[0]
            described.append({"path": name, "bytes": entry.size_in_bytes, "changed": entry.last_updated_in_seconds})
        else:
            described.append({"path": name, "bytes": os.path.getsize(path), "sha256": sha256_file(path)})
    return described


def read_unit(unit: Unit, fields: Fields) -> Iterator[Document | DeadLetter]:
    """The documents of a unit, normalised, and a dead letter for each record that is none. Blank lines are no records.

    A file that is damaged in the middle gives what stands before, and one dead letter.
    """
    line = unit.first_line
    try:
        for line, raw in _records(unit, fields):
            yield to_document(raw, fields, unit.name, line)
    except (OSError, BeamIOError, pa.ArrowException) as error:
        yield DeadLetter(unit.name, line, "damaged file", f"unreadable after record {line}: {type(error).__name__}: {error}")


def to_document(raw: Any, fields: Fields, source: str, line: int) -> Document | DeadLetter:
    """A record, either bytes of JSON or an object, as a document; or the reason why it is none."""

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
        return dead("no text", f"no field {fields.text!r}; fields are {clean(', '.join(map(str, row)))[:_SNIPPET_CHARACTERS]}")
    for name, value in ((fields.text, text), (fields.title, title)):
        if value is not None and not isinstance(value, str):
            return dead("text not a string", f"field {name!r} is {type(value).__name__}, expected a string")
    if found_id is not None and not isinstance(found_id, str | int):
        return dead("id not a string", f"field {fields.id!r} is {type(found_id).__name__}, expected a string or an integer")
    try:
        f"{text}{title}{found_id}".encode()
    except UnicodeEncodeError as error:
        return dead("not Unicode", f"a lone surrogate: {error}")
    title, text = normalise(title or ""), normalise(text)
    if not text:
        return dead("empty text", f"field {fields.text!r} holds nothing but white space or control characters")
    return Document(document_id(title, text) if found_id in (None, "") else str(found_id), title, text, source, line)


def clean(text: str) -> str:
    """The text with lone surrogates replaced, which no coder takes."""
    return text.encode("utf-8", "replace").decode()


def _records(unit: Unit, fields: Fields) -> Iterator[tuple[int, Any]]:
    """Line or row number from 1, and the record: bytes of JSON, an object, or a dead letter."""
    with FileSystems.open(unit.path, compression_type=CompressionTypes.UNCOMPRESSED) as raw:
        if unit.format == "parquet":
            yield from _parquet_rows(raw, unit, fields)
            return
        with decompressed(raw, unit.compression) as stream:
            if unit.format == "jsonl":
                yield from _lines(stream, unit)
            elif unit.format == "json":
                yield from _array(stream.read(), unit)
            else:
                yield 1, _whole_text(stream.read(MAX_RECORD_BYTES + 1), unit, fields)


def _lines(stream: IO[bytes], unit: Unit) -> Iterator[tuple[int, bytes | DeadLetter]]:
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        number += 1
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            snippet = clean(line[:_SNIPPET_CHARACTERS].decode("utf-8", "replace"))
            while (rest := stream.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, DeadLetter(unit.name, number, "record too long", f"a line of more than {MAX_RECORD_BYTES} bytes", snippet)
        elif line.strip():
            yield number, line


def _array(data: bytes, unit: Unit) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield 1, DeadLetter(unit.name, 1, "not JSON", str(error), clean(data[:_SNIPPET_CHARACTERS].decode("utf-8", "replace")))
        return
    yield from enumerate(rows if isinstance(rows, list) else [rows], 1)


def _whole_text(data: bytes, unit: Unit, fields: Fields) -> Mapping[str, str] | DeadLetter:
    snippet = clean(data[:_SNIPPET_CHARACTERS].decode("utf-8", "replace"))
    if len(data) > MAX_RECORD_BYTES:
        return DeadLetter(unit.name, 1, "record too long", f"a file of more than {MAX_RECORD_BYTES} bytes; use JSONL", snippet)
    try:
        return {fields.text: data.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return DeadLetter(unit.name, 1, "not UTF-8", str(error), snippet)


def _parquet_rows(raw: IO[bytes], unit: Unit, fields: Fields) -> Iterator[tuple[int, Mapping[str, Any]]]:
    file = pq.ParquetFile(raw)
    if not file.metadata.num_row_groups:
        return
    columns = [name for name in (fields.id, fields.title, fields.text) if name in file.schema_arrow.names]
    # Without the text column each row is a dead letter that names the columns there are.
    table = file.read_row_group(unit.row_group, columns=columns if fields.text in columns else None)
    yield from enumerate(table.to_pylist(), unit.first_line)
