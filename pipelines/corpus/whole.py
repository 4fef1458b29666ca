"""Reads and writes whole corpora in memory, for the small commands."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clara.data.corpus import FIELDS, Fields, read_rows, to_document
from clara.data.records import Document
from clara.errors import InputError
from clara.storage.folders import atomic_write


def read_corpus(files: Sequence[str], fields: Fields = FIELDS) -> list[Document]:
    """The documents of files in order (see `read_rows`), each content once.

    Raises:
        InputError: a bad row, two documents of different content with one id, or no document at all.
    """
    documents: dict[str, Document] = {}
    for path in files:
        for number, row in read_rows(path, fields):
            document = to_document(row, path, number, fields)
            known = documents.setdefault(document.id, document)
            if (known.title, known.text) != (document.title, document.text):
                raise InputError(
                    f"{path}:{number}: id {document.id!r} is at {known.source}:{known.line} with other content; "
                    "give each document its own"
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
