"""Reads the records of a JSON file, whatever its shape.

JSON Lines are read line by line. These shapes are read whole: a list; an object with a list of rows
(`{"data": [...]}`) or with the columns of a table; several values, on one line or over several lines.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from clara.data.records import Unusable

MAX_RECORD_BYTES = 64 * 2**20
"""Longest line of JSON Lines; a longer one is not read as a record."""

_MARK = b"\xef\xbb\xbf"  # of UTF-8; in a concatenated file each part may begin with it
_BLANK = b" \t\r\n\v\f\x1e"
_WINDOW_BYTES = 2**16
_DEPTH = 3  # levels of objects in which the list of rows is looked for
_GAP = re.compile(r"[\s,\ufeff\x1e]*")  # between values one after another
_OF_ROWS = {  # fields of a single row
    *("id", "_id", "title", "question", "questionid", "query", "answer", "input", "body", "context"),
    *("question_text", "document_text", "messages"),
}
_PLAIN_DECODER = json.JSONDecoder()
_AS_SPACES = dict.fromkeys(map(ord, "\t\v\f"), " ")
TWICE = "name twice"
"""Reason of a record in which an object has a name twice: which value is meant is not known."""


class RepeatedNameError(ValueError):
    """An object of JSON has a name twice."""


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some names and values, for `object_pairs_hook`; Python's own takes the last of two values.

    Raises:
        RepeatedNameError: a name occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise RepeatedNameError(f"{twice!r:.60} occurs twice in an object; keep one of its values")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=unique_names)
# Strings may hold tabs and form feeds; of a line, no line end can be among them.
_LINE_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=unique_names)
_LENIENT_DECODER = json.JSONDecoder(strict=False)


def json_records(stream: IO[bytes], text_field: str, *, long_lines: bool = False) -> Iterator[tuple[int, Any]]:
    """Number and value of each record of a file; `Unusable` in place of a bad one.

    Args:
        stream: UTF-8, with or without a byte order mark.
        text_field: a field that the rows of a wrapped file have.
        long_lines: whether the file may be one line longer than `MAX_RECORD_BYTES`.

    Returns:
        Numbers from 1: of lines for JSON Lines, of records for other shapes.
    """
    read, first, whole = _beginning(stream, long_lines)
    if whole:
        yield from enumerate(map(_flat, _values(b"".join(read) + stream.read(), text_field)), first)
    else:
        yield from _numbered(itertools.chain(read, raw_lines(stream)), 1)


def line_records(stream: IO[bytes], first: int, size: int) -> Iterator[tuple[int, Any]]:
    """`json_records` for the next `size` bytes of JSON Lines (−1: all); `first` is the number of the first line."""
    yield from _numbered(raw_lines(stream, size), first)


def is_json_lines(stream: IO[bytes]) -> bool:
    """Whether a file is JSON Lines, judged by its beginning."""
    return not _beginning(stream, long_lines=False)[2]


# --- the shape -------------------------------------------------------------------------------------------------------


def _beginning(stream: IO[bytes], long_lines: bool) -> tuple[list[bytes], int, bool]:
    """Lines that were read to find the shape, number of the first record, and whether the file must be read whole."""
    read: list[bytes] = []
    while (line := stream.readline(MAX_RECORD_BYTES)) and line.strip(_BLANK) in (b"", _MARK):
        read.append(line)
    if not line:
        return read, 1, False
    first, read = len(read) + 1, [*read, line]
    if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
        return read, 1, long_lines
    value = line_value(line)
    if not isinstance(value, Unusable) or value.reason == TWICE:
        while (more := stream.readline(MAX_RECORD_BYTES)) and not more.strip():
            read.append(more)
        return [*read, more], first, not more
    size = len(line)
    while size < _WINDOW_BYTES and (more := stream.readline(MAX_RECORD_BYTES)):
        read, size = [*read, more], size + len(more)
    return read, 1, _is_no_line(line, b"".join(read[first - 1 :]))


def _is_no_line(line: bytes, window: bytes) -> bool:
    """Whether a first line that is not one JSON value is part of a longer value, or holds several.

    Args:
        line: the first line.
        window: the beginning of the file.
    """
    length = len(line.decode("utf-8-sig", "replace"))
    text = window.decode("utf-8-sig", "replace").translate(_AS_SPACES)
    start = _after_gap(text, 0)
    if text[start : start + 1] not in ("{", "["):
        return False
    try:
        _, end = _PLAIN_DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated string"):  # no string of JSON holds a line end
            return False
        second = _after_gap(text, length)
        is_next = text[second : second + 1] in ("{", "[") and error.pos in (length, second)
        return error.pos >= length and not is_next
    except (ValueError, RecursionError):
        return False
    return end > length or text[_after_gap(text, end) :][:1] in ("{", "[")


def _after_gap(text: str, start: int) -> int:
    found = _GAP.match(text, start)
    return found.end() if found else start


# --- JSON Lines ------------------------------------------------------------------------------------------------------


def raw_lines(stream: IO[bytes], size: int = -1) -> Iterator[bytes]:
    """The lines in the next `size` bytes (−1: all); lines longer than `MAX_RECORD_BYTES` come in pieces."""
    done = 0
    while (size < 0 or done < size) and (line := stream.readline(MAX_RECORD_BYTES)):
        done += len(line)
        yield line


def numbered_lines(lines: Iterable[bytes], first: int) -> Iterator[tuple[int, bytes | Unusable]]:
    """Numbered lines that are not blank; `Unusable` for one that is too long."""
    number, within = first - 1, False
    for line in lines:
        is_cut = len(line) >= MAX_RECORD_BYTES and not line.endswith(b"\n")
        if not within:
            number += 1
            if is_cut:
                yield number, Unusable("record too long", f"a line of more than {MAX_RECORD_BYTES} bytes", line)
            elif line.strip(_BLANK) not in (b"", _MARK):
                yield number, line
        within = is_cut


def _numbered(lines: Iterable[bytes], first: int) -> Iterator[tuple[int, Any]]:
    for number, line in numbered_lines(lines, first):
        if isinstance(line, Unusable):
            yield number, line
        else:
            yield from ((number, _flat(value)) for value in _of_line(line))


def _of_line(line: bytes) -> Sequence[Any]:
    """The values of a line: one, or each object if it holds several or a list of them."""
    value = line_value(line)
    if isinstance(value, Unusable) and value.reason == TWICE:
        return list(_values(line, ""))
    values = value if isinstance(value, list) else [value]
    if isinstance(value, Unusable) and "Extra data" in value.detail:
        values = list(_values(line, ""))
    return values if values and all(isinstance(row, dict) for row in values) else [value]


def line_value(line: bytes) -> Any:
    """The value of a line of JSON; `Unusable` with the reason if it has none."""
    try:
        return _LINE_DECODER.decode(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Unusable("not UTF-8", str(error), line)
    except RepeatedNameError as error:
        return Unusable(TWICE, str(error), line)
    except (ValueError, RecursionError) as error:
        return Unusable("not JSON", str(error), line)


def _flat(value: Any) -> Any:
    """A row; of one as Elasticsearch exports it, the fields of its `_source` beside `_id` and the others."""
    if isinstance(value, dict) and isinstance(source := value.get("_source"), dict):
        return {**{name: held for name, held in value.items() if name != "_source"}, **source}
    return value


# --- whole files -----------------------------------------------------------------------------------------------------


def _values(data: bytes, text_field: str) -> Iterator[Any]:
    """The records of a file that is read whole. From a damaged list come those before the damage."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Unusable("not UTF-8", str(error), data)
        return
    start = begin = _after_gap(text, 0)
    in_list = False
    while start < len(text):
        if in_list and text[start] == "]":
            start, in_list = _after_gap(text, start + 1), False
            continue
        try:
            value, end = _decoded(text, start, dict if in_list else object)
        except (ValueError, RecursionError) as error:
            if text[start] == "[" and not in_list:
                start, in_list = _after_gap(text, start + 1), True
                continue
            unusable, start = _unusable(text, start, error)
            yield unusable
            continue
        end = _after_gap(text, end)
        if isinstance(value, list):
            yield from value
        elif isinstance(value, dict) and start == begin and end == len(text):
            yield from _unwrapped(value, text_field)
        else:
            yield value
        start = end


def _unusable(text: str, start: int, error: Exception) -> tuple[Unusable, int]:
    """What is at a place where no value could be read, and where the next one may begin."""
    if isinstance(error, RepeatedNameError):
        with contextlib.suppress(ValueError, RecursionError):  # it may be damaged behind that
            _, end = _LENIENT_DECODER.raw_decode(text, start)
            return Unusable(TWICE, str(error), text[start:end]), _after_gap(text, end)
    end = text.find("\n{", start)  # the next one begins a line
    return Unusable("not JSON", str(error), text[start:]), end + 1 if end >= 0 else len(text)


def _decoded(text: str, start: int, kind: type) -> tuple[Any, int]:
    """The value that starts at a position, and the position of its end.

    Raises:
        ValueError: there is none, or it is of another type.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Invalid control character"):
            raise
        value, end = _LINE_DECODER.raw_decode(text, start)
    if not isinstance(value, kind):
        raise ValueError(f"{value!r:.60} among objects")
    return value, end


def _unwrapped(value: dict[str, Any], text_field: str) -> Sequence[Any]:
    """The rows in a file's only object: in columns, in one list, or keyed by id. Otherwise the object is the row."""
    if isinstance(value.get(text_field), str) or not _OF_ROWS.isdisjoint(map(str.casefold, value)):
        rows = _of_columns(value, text_field)
        return rows or [value]
    if rows := _of_columns(value, text_field):
        return rows
    lists = [found for found in _lists(value, _DEPTH) if any(text_field in _flat(row) for row in found)]
    lists = lists or [found for found in _lists(value, 1) if found]
    if len(lists) == 1:
        return lists[0]
    if value and all(isinstance(row, dict) and text_field in row for row in value.values()):
        return [{"id": name, **row} for name, row in value.items()]
    return [value]


def _lists(value: Mapping[str, Any], depth: int) -> Iterator[list[dict[str, Any]]]:
    """All lists of objects in an object and in the objects inside it."""
    for found in value.values():
        if isinstance(found, list) and found and all(isinstance(row, dict) for row in found):
            yield found
        elif isinstance(found, dict) and depth > 1:
            yield from _lists(found, depth - 1)


def _of_columns(value: Mapping[str, Any], text_field: str) -> list[dict[str, Any]]:
    """The rows of an object that holds the columns of a table; empty if it does not."""
    columns, cells = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(cells, list) and text_field in columns:
        if all(isinstance(row, list) and len(row) == len(columns) for row in cells):
            return [dict(zip(columns, row, strict=True)) for row in cells]
    elif isinstance(value.get(text_field), list | dict):
        found = [list(c.values()) if isinstance(c, dict) else c for c in value.values()]
        if all(isinstance(c, list) and len(c) == len(found[0]) for c in found):
            return [dict(zip(value, row, strict=True)) for row in zip(*found, strict=True)]
    return []
