"""Corpora as JSONL files: one document a line, with `title`, `text` and, where it has one, `id`."""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.artefact import atomic_write, sha256_file
from clara.errors import InputError
from clara.records import Document, document_id, normalise


def expand(patterns: Sequence[str]) -> list[str]:
    """The files that paths and globs name, sorted, each once.

    Raises:
        InputError: a pattern names none.
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
        if not matches:
            raise InputError(f"--input {pattern!r}: no such file; give a file or a quoted glob")
        found.update(matches)
    return sorted(found)


def input_hashes(files: Sequence[str]) -> dict[str, str]:
    """File name to sha256, for a recipe."""
    return {os.path.basename(f): sha256_file(f) for f in files}


def read_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each line of a JSONL file; empty lines are skipped.

    Raises:
        InputError: a line is not a JSON object in UTF-8.
    """
    with open(path, "rb") as lines:
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


def read_corpus(files: Sequence[str]) -> list[Document]:
    """The documents of JSONL files in order, each content once.

    Raises:
        InputError: a bad row, two documents of different content with one id, or no document at all.
    """
    documents: dict[str, Document] = {}
    for path in files:
        for number, row in read_rows(path):
            document = to_document(row, path, number)
            known = documents.setdefault(document.id, document)
            if (known.title, known.text) != (document.title, document.text):
                raise InputError(
                    f"{path}:{number}: id {document.id!r} stands at {known.source}:{known.line} with other content; give each document its own"
                )
    if not documents:
        raise InputError(f"{', '.join(files)}: no document; give JSONL with `title` and `text`")
    return list(documents.values())


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSONL, whole or not at all; returns their number."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    atomic_write(Path(path), "".join(line + "\n" for line in lines))
    return len(lines)
