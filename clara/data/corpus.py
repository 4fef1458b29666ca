"""Corpus files: JSONL, JSON arrays, Parquet or text, perhaps compressed, of documents with `text`, `title` and `id`."""

import glob
import io
import json
import lzma
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from clara.config.jobs import Records
from clara.data.records import Document, document_id, normalise
from clara.errors import InputError
from clara.storage.bucket import url_glob
from clara.storage.cache import local_file
from clara.storage.folders import sha256_file
from clara.storage.paths import is_url

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz"}
"""Compression of a file by the ending of its name."""

_TEXT = (".txt", ".text", ".md")
_NAMES = {".parquet": "Parquet", **dict.fromkeys(_TEXT, "text")}
_PARQUET_ROWS = 1024  # in memory at once

DAMAGE = (OSError, EOFError, lzma.LZMAError, pa.ArrowException)
"""What reading a damaged file raises."""


_RECORDS = Records()


@dataclass(frozen=True)
class Fields:
    """Names of a record's fields."""

    id: str = _RECORDS.id_field
    title: str = _RECORDS.title_field
    text: str = _RECORDS.text_field


FIELDS = Fields()
"""The field names that are read by default."""


def decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    """A stream's content; empty: it is not compressed.

    Arrow's reader takes files of several parts, and a part that is cut short is an error; zstandard's own takes it for
    the end.
    """
    if compression == "xz":  # which Arrow has not
        return lzma.LZMAFile(raw)
    return (
        io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)) if compression else raw
    )


def expand(patterns: Sequence[str], option: str = "--input") -> list[str]:
    """The files and URLs that paths and globs name, sorted, each once.

    Raises:
        InputError: a pattern names none.
    """
    found: set[str] = set()
    for pattern in patterns:
        if is_url(pattern):
            matches = url_glob(pattern)
        else:  # a name may hold brackets
            matches = (
                [pattern]
                if os.path.isfile(pattern)
                else [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
            )
        if not matches:
            if os.path.isdir(pattern):
                raise InputError(
                    f"{option} {pattern!r}: a directory; give the files in it, as '{pattern.rstrip('/')}/*', quoted"
                )
            raise InputError(f"{option} {pattern!r}: no such file; give a file or a quoted glob")
        found.update(matches)
    return sorted(found)


def input_hashes(files: Sequence[str]) -> dict[str, str]:
    """File name to sha256, for a recipe; the whole path where two files in different folders have one name."""
    same = Counter(os.path.basename(f) for f in files)
    return {f if same[name] > 1 else name: sha256_file(local_file(f)) for f in files for name in [os.path.basename(f)]}


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The content of a file, or of a URL's copy on this machine, decompressed by the ending of its name.

    Raises:
        InputError: it is not there, or damaged anywhere that is read inside.
    """
    compression = COMPRESSIONS.get(os.path.splitext(os.fspath(path).lower())[1], "")
    try:
        with open(local_file(path), "rb") as raw, decompressed(raw, compression) as stream:
            yield stream
    except DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read to its end ({error}); correct the path, or copy the file again"
        ) from error


def read_rows(path: str, fields: Fields = FIELDS) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (line or row, from 1) and object of each record of a file; empty lines are skipped.

    A file is JSONL or one JSON list, Parquet (`.parquet`), or plain text (`.txt`, `.text`, `.md`: one document, with
    nothing but its text, under the name that `fields` has for it).

    Raises:
        InputError: a record is not a JSON object in UTF-8, or the file is damaged.
    """
    stem, ending = os.path.splitext(path.lower())
    if ending in COMPRESSIONS:
        ending = os.path.splitext(stem)[1]
    with opened(path) as stream:
        try:
            if ending == ".parquet":
                yield from enumerate(_table_rows(stream), 1)
            elif ending in _TEXT:
                yield 1, {fields.text: stream.read().decode("utf-8-sig")}
            elif cast(io.BufferedReader, stream).peek(1)[:256].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                for number, row in enumerate(json.load(stream), 1):
                    yield number, _object(row, path, number)
            else:
                yield from _line_rows(stream, path)
        except (InputError, *DAMAGE):
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: not {_NAMES.get(ending, 'JSON')} in UTF-8 ({error}); make it again, or download it again"
            ) from error


def _table_rows(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(stream).iter_batches(_PARQUET_ROWS):
        yield from batch.to_pylist()


def _line_rows(lines: IO[bytes], path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            shown = line[:60].decode("utf-8", "replace")
            raise InputError(
                f"{path}:{number}: {shown!r}: not JSON in UTF-8 ({error}); expected one object a line"
            ) from error
        yield number, _object(row, path, number)


def _object(row: Any, path: str, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{path}:{number}: {row!r:.60}: expected a JSON object")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which could not be written again
        raise InputError(
            f"{path}:{number}: {row!r:.60}: not JSON in UTF-8 ({error}); expected whole characters"
        ) from error
    return row


def to_document(row: Mapping[str, Any], source: str, line: int, fields: Fields = FIELDS) -> Document:
    """A normalised document of a row; without an id, the hash of its content is its id.

    Raises:
        InputError: the text is missing, empty or not a string, or the title is not a string.
    """
    for field in (fields.title, fields.text):
        if not isinstance(row.get(field) or "", str):
            raise InputError(f"{source}:{line}: {field} is {row[field]!r:.60}; expected a string")
    title, text = normalise(row.get(fields.title) or ""), normalise(row.get(fields.text) or "")
    if not text:
        raise InputError(
            f"{source}:{line}: no `{fields.text}` (fields: {', '.join(sorted(row)) or 'none'}); every document needs "
            "one"
        )
    given = row.get(fields.id)
    name = document_id(title, text) if given in (None, "") else str(given)
    return Document(id=name, title=title, text=text, source=source, line=line)
