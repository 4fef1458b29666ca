"""Corpora as JSONL files (plain or compressed): one document a line, with `title`, `text` and, where it has one, `id`."""

import io
import json
import lzma
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from clara.errors import InputError
from clara.localise import localised_file
from clara.records import Document, document_id, normalise

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz"}
"""Compression of a file by the ending of its name."""

DAMAGE = (OSError, EOFError, lzma.LZMAError, pa.ArrowException)
"""What reading a damaged file raises."""


def decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    """A stream's content; empty: it is not compressed.

    Arrow's reader takes files of several parts, and a part that is cut short is an error; zstandard's own takes it for the end.
    """
    if compression == "xz":  # which Arrow has not
        return lzma.LZMAFile(raw)
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)) if compression else raw


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The content of a file, or of a URL's copy on this machine, decompressed by the ending of its name.

    Raises:
        InputError: it is not there, or damaged anywhere that is read inside.
    """
    compression = COMPRESSIONS.get(os.path.splitext(os.fspath(path).lower())[1], "")
    try:
        with open(localised_file(path), "rb") as raw, decompressed(raw, compression) as stream:
            yield stream
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); correct the path, or copy the file anew") from error


def read_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each line of a JSONL file; empty lines are skipped.

    Raises:
        InputError: a line is not a JSON object in UTF-8, or the file is damaged.
    """
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            shown = line[:60].decode("utf-8", "replace")
            try:
                row = json.loads(line.decode("utf-8-sig"))
                json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate could not be written again
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: {shown!r}: not JSON in UTF-8 ({error}); expected one object a line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: {shown!r}: expected a JSON object")
            yield number, row


def to_document(row: Mapping[str, Any], source: str, line: int) -> Document:
    """A normalised document of a row; without `id`, the hash of its content is its id.

    Raises:
        InputError: `text` is missing, empty or not a string, or `title` is not a string.
    """
    for field in ("title", "text"):
        if not isinstance(row.get(field) or "", str):
            raise InputError(f"{source}:{line}: {field} is {row[field]!r:.60}; expected a string")
    title, text = normalise(row.get("title") or ""), normalise(row.get("text") or "")
    if not text:
        raise InputError(f"{source}:{line}: no `text` (fields: {', '.join(sorted(row)) or 'none'}); every document needs one")
    given = row.get("id")
    name = document_id(title, text) if given in (None, "") else str(given)
    return Document(id=name, title=title, text=text, source=source, line=line)
