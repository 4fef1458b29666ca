"""The corpus files that the small commands read and write: globs, hashes for recipes, whole corpora in RAM."""

import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clara.artefact import atomic_write, sha256_file
from clara.bucket import url_glob
from clara.corpus import read_rows, to_document
from clara.errors import InputError
from clara.localise import localised_file
from clara.records import Document
from clara.storage import is_url


def expand(patterns: Sequence[str]) -> list[str]:
    """The files and URLs that paths and globs name, sorted, each once.

    Raises:
        InputError: a pattern names none.
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = url_glob(pattern) if is_url(pattern) else [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
        if not matches:
            raise InputError(f"--input {pattern!r}: no such file; give a file or a quoted glob")
        found.update(matches)
    return sorted(found)


def input_hashes(files: Sequence[str]) -> dict[str, str]:
    """File name to sha256, for a recipe."""
    return {os.path.basename(f): sha256_file(localised_file(f)) for f in files}


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
    """Write rows as JSONL to a path or URL, whole or not at all; returns their number."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    atomic_write(path, "".join(line + "\n" for line in lines))
    return len(lines)
