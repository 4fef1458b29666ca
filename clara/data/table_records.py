"""Records of tables: Parquet, with its schema checked ahead; CSV and TSV with or without a first line of names."""

import csv
import io
import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from clara.data.fields import Fields, QuestionFields
from clara.data.json_records import MAX_RECORD_BYTES, numbered_lines, raw_lines
from clara.data.records import Unusable
from clara.errors import InputError

PARQUET_ROWS = 1024  # in memory at once
_DELIMITERS = {"csv": ",;\t|", "tsv": "\t,;|"}
_NUMBER = re.compile(r"\d+")
_SEPARATOR = re.compile(rb"(\xef\xbb\xbf)?sep=.\r?\n?", re.IGNORECASE)
_QA_LINE = re.compile(rb"[^\t]+\t\"?\[.*\]\"?\s*$")
_NULL = "\\N"
_MOST_LINES = 100_000  # of one row, whose quoted cells may hold line ends

# --- Parquet ---------------------------------------------------------------------------------------------------------


def open_parquet(raw: IO[bytes]) -> pq.ParquetFile:
    """A Parquet file; of one that was compressed as a whole, the content is held in memory.

    Raises:
        pa.ArrowException: it is damaged.
    """
    try:
        file = pq.ParquetFile(raw if raw.seekable() else io.BytesIO(raw.read()))
        file.schema_arrow.names  # noqa: B018 (decoded by each look)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"a name in its schema is not UTF-8: {error}") from error
    return file


def parquet_rows(
    file: pq.ParquetFile, row_groups: Sequence[int] | None = None, columns: Sequence[str] | None = None
) -> Iterator[Any]:
    """The rows of a Parquet file: of some row groups (None: all), with some columns (None: all).

    `Unusable` in place of a bad one.
    """
    for batch in file.iter_batches(PARQUET_ROWS, row_groups=row_groups, columns=columns):
        try:
            yield from batch.to_pylist()
        except (ValueError, OverflowError):  # a string that is not UTF-8, a time out of range
            yield from (_row(batch.slice(number, 1)) for number in range(len(batch)))


def _row(batch: pa.RecordBatch) -> Any:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return Unusable("not UTF-8" if isinstance(error, UnicodeError) else "not readable", str(error))


def check_schema(path: str, schema: pa.Schema, fields: Fields) -> None:
    """Check that columns of a Parquet file can be read as ids and texts.

    Raises:
        InputError: there is no text, or a column is of another type; names the file, the column and its type.
    """
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise InputError(f"{path}: two columns are named {twice[0]!r}; give each its own name")
    fields = fields.of(schema.names)
    if fields.text not in schema.names:
        raise InputError(
            f"{path}: no column {fields.text!r} for the text (there are {', '.join(schema.names) or 'none'}); name it "
            "with --text-field"
        )
    for name, flag in ((fields.text, "--text-field"), (fields.title, "--title-field")):
        if name in schema.names and not _is_text(schema.field(name).type):
            raise InputError(
                f"{path}: column {name!r} is {schema.field(name).type}, expected strings; name another one with {flag}"
            )
    if fields.id in schema.names and not _is_id(kind := schema.field(fields.id).type):
        raise InputError(
            f"{path}: column {fields.id!r} is {kind}, expected strings or integers; name another one with --id-field"
        )


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(
        is_one(kind)
        for is_one in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
            types.is_fixed_size_binary,
            types.is_null,
        )
    )


def _is_id(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _is_id(kind.value_type)
    if isinstance(kind, pa.UuidType):
        return True
    return _is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


# --- CSV and TSV -----------------------------------------------------------------------------------------------------


class _Lines:
    """Lines as text for `csv.reader`, which takes as many as a row has; they can be given back."""

    def __init__(self, lines: Iterable[tuple[int, bytes | Unusable]]) -> None:
        self._source, self._back = iter(lines), deque[tuple[int, bytes | Unusable]]()
        self.taken: list[tuple[int, bytes | Unusable]] = []
        self.most = _MOST_LINES

    def peek(self) -> tuple[int, bytes | Unusable] | None:
        """The next line with its number; None at the end."""
        if not self._back and (found := next(self._source, None)) is not None:
            self._back.append(found)
        return self._back[0] if self._back else None

    def skip(self) -> None:
        """Leave the next line out."""
        self.peek()
        self._back.popleft()

    def give_back(self) -> None:
        """Give back all lines of the row but its first."""
        self._back.extendleft(reversed(self.taken[1:]))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        found = self.peek()
        if found is None or len(self.taken) >= self.most or isinstance(found[1], Unusable):
            raise StopIteration
        self.taken.append(self._back.popleft())
        return found[1].decode("utf-8-sig")


def table_records(stream: IO[bytes], kind: str, path: str, fields: Fields) -> Iterator[tuple[int, Any]]:
    """Number of its first line, and cells by name, of each row of a table; `Unusable` in place of a bad one.

    The first line names the columns; quotes are those of RFC 4180. A TSV file without such a line, whose rows are a
    number, a text and perhaps a title, has no quotes (`collection.tsv` of MS MARCO and ColBERT). DPR's `qa.csv` has
    questions and lists of answers. A line `sep=;` of Excel may come first, and `\\N` is an empty cell, as in dumps of
    databases.

    Args:
        stream: UTF-8, with or without a byte order mark.
        kind: `csv` or `tsv`, which says the delimiter that is tried first.
        path: for messages.
        fields: names of the columns.

    Raises:
        InputError: the first line neither names the text nor is such a row.
    """
    csv.field_size_limit(MAX_RECORD_BYTES)
    lines = _Lines(numbered_lines(_rows_of(stream), 1))
    while (first := lines.peek()) and isinstance(first[1], bytes) and _SEPARATOR.fullmatch(first[1]):
        lines.skip()
    if first is None:
        return
    questions = isinstance(fields, QuestionFields)
    if questions and isinstance(first[1], bytes) and _QA_LINE.match(first[1]):
        yield from _quoted(lines, "\t", ["question", "answer"])
        return
    delimiter, names = _header(first[1], kind, path, fields)
    if names:
        lines.skip()
        yield from _quoted(lines, delimiter, names)
    else:
        yield from _collection(lines, (fields.id, fields.text, fields.title))


def _rows_of(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a table; those of old Macs end with a carriage return alone."""
    lines = raw_lines(stream)
    first = next(lines, b"")
    if b"\r" not in first.rstrip(b"\r\n"):
        yield first
        yield from lines
    else:
        for line in itertools.chain([first], lines):
            yield from io.BytesIO(line.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))


def _header(line: bytes | Unusable, kind: str, path: str, fields: Fields) -> tuple[str, list[str]]:
    """Delimiter and names of the columns; no names for a collection without any."""
    shown = line.decode("utf-8-sig", "replace").strip("\r\n") if isinstance(line, bytes) else ""
    for delimiter in _DELIMITERS[kind]:
        try:
            names = [name.strip() for name in next(csv.reader([shown], delimiter=delimiter, strict=True), [])]
        except csv.Error:
            continue
        if fields.of(names).text in names:
            if isinstance(line, bytes):
                _decoded(line, path)
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise InputError(f"{path}:1: the first line names {twice[0]!r} twice; give each column its own name")
            return delimiter, names
    cells = shown.split("\t")
    if kind == "tsv" and 2 <= len(cells) <= 3 and _NUMBER.fullmatch(cells[0]):
        return "\t", []
    questions = isinstance(fields, QuestionFields)
    wanted = _DELIMITERS[kind][0].join((fields.id, fields.text, "answers" if questions else fields.title))
    raise InputError(
        f"{path}:1: the first line, {shown[:60]!r}, names no column {fields.text!r}; "
        + ("" if questions else "name the text's column with --text-field, or ")
        + f"put a first line before the rows, as {wanted!r}"
    )


def _decoded(line: bytes, path: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:1: the first line is not UTF-8 ({error}); convert the file with iconv") from error


def _collection(lines: _Lines, names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    while (found := lines.peek()) is not None:
        number, line = found
        lines.skip()
        if isinstance(line, Unusable):
            yield number, line
            continue
        try:
            cells = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            yield number, Unusable("not UTF-8", str(error), line)
            continue
        if 2 <= len(cells) <= len(names):
            yield number, dict(zip(names, cells, strict=False))
        else:
            yield number, Unusable("not a row", f"{len(cells)} cells, expected a number, a text, perhaps a title", line)


def _quoted(lines: _Lines, delimiter: str, names: list[str]) -> Iterator[tuple[int, Any]]:
    """Rows whose cells may be quoted; an unclosed quote spoils its own line only."""
    while (found := lines.peek()) is not None:
        number, line = found
        lines.taken = []
        if isinstance(line, Unusable):
            lines.skip()
            yield number, line
            continue
        try:
            cells = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        except UnicodeDecodeError as error:
            lines.give_back()
            yield number, Unusable("not UTF-8", str(error), line)
            continue
        except csv.Error as error:
            lines.most = min(lines.most, 1000) if len(lines.taken) > 1 else lines.most
            lines.give_back()
            cells = line.decode("utf-8-sig").rstrip("\r\n").split(delimiter)
            if delimiter != "\t" or len(cells) != len(names):  # a tab is no part of a text, as a comma is
                yield number, Unusable("not a row", f"{error}; quotes are doubled inside of quotes", line)
                continue
        if cells == names:
            yield (
                number,
                Unusable("not a row", "the names of the columns again, as where tables are put together", line),
            )
        elif len(cells) == len(names):
            yield number, {name: "" if cell == _NULL else cell for name, cell in zip(names, cells, strict=True)}
        else:
            yield number, Unusable("not a row", f"{len(cells)} cells, the first line names {len(names)}", line)
