"""The dead-letter dataset of a corpus job: each unused record with file, line and reason, in numbered files."""

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from clara.storage.manifest import write_file
from pipelines.corpus.dead_letter import DeadLetter, clean

NAME = "dead_letters"
SNIPPET_CHARACTERS = 200
_LETTERS_PER_FILE = 200_000


def file_name(part: int, num_parts: int) -> str:
    """File name of a part; a single part is named `dead_letters.jsonl`."""
    return f"{NAME}.jsonl" if num_parts == 1 else f"{NAME}-{part:05d}-of-{num_parts:05d}.jsonl"


def letters_of_report(report: Mapping[str, Any]) -> Iterator[DeadLetter]:
    """Dead letters of the chunks that a shard could not compress."""
    for f in report["failures"]:
        snippet = f["text"][:SNIPPET_CHARACTERS]
        yield DeadLetter(
            f["source"], f["line"], "not compressed", clean(f["reason"]), snippet, document_id=f["document_id"]
        )


def num_parts_of(num_letters: int) -> int:
    """Number of parts for so many dead letters: a power of two."""
    return 1 << (max(1, math.ceil(num_letters / _LETTERS_PER_FILE)) - 1).bit_length()


def number_of(letter: DeadLetter) -> int:
    """A hash that assigns a dead letter to a part, equal on every machine."""
    return zlib.crc32(f"{letter.source}:{letter.line}".encode())


def write_part(element: tuple[int, Iterable[DeadLetter | None]], num_parts: int, directory: str) -> dict[str, Any]:
    """Write one part, sorted, atomically. Returns its manifest entry."""
    part, found = element
    letters = sorted((x for x in found if x is not None), key=lambda x: (x.source, x.line, x.reason, x.detail))
    lines = "".join(json.dumps(asdict(letter), ensure_ascii=False) + "\n" for letter in letters)
    name = file_name(part, num_parts)
    return write_file(directory, name, lines.encode(), len(letters))
