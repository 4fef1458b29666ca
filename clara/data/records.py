"""Documents, chunks and their ids: pure functions of content."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

NORMALISATION = 2
"""Version of `normalise`, which chunk ids depend on.

The first removed form feeds, vertical tabs, U+001C to U+001F and U+0085.
"""
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # but those that `str.split` takes for white space


@dataclass(frozen=True)
class Document:
    """One source text. `source` is the file as it was named, `line` its 1-based line or row there."""

    id: str
    title: str
    text: str
    source: str = ""
    line: int = 0


@dataclass(frozen=True)
class Unusable:
    """A record of a file that cannot be used: the reason, which is counted, details, and the record."""

    reason: str
    detail: str
    record: Any = b""


@dataclass(frozen=True)
class Chunk:
    """A span of a document that is compressed as one: characters `start` to `end` of the normalised text."""

    row_id: int
    chunk_id: str
    document_id: str
    title: str
    text: str
    start: int
    end: int
    num_tokens: int
    truncated: bool
    source: str = ""


def normalise(text: str) -> str:
    """NFC, without control characters, each run of white space one space, stripped. Idempotent."""
    if not (text.isascii() and text.isprintable()):  # most texts are, and then only the white space is left to do
        text = _CONTROL.sub("", unicodedata.normalize("NFC", text))
    return unicodedata.normalize("NFC", " ".join(text.split()))


def whole_characters(text: str) -> str:
    """The text with each pair of surrogates as the character that it means, and U+FFFD for a single one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encodable(text: str) -> bool:
    """True if a text is valid Unicode: a lone surrogate, e.g. of broken UTF-8, can be neither tokenised nor written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def chunk_id(title: str, text: str) -> str:
    """Sixty-four hexadecimal digits that depend on the normalised title and text only."""
    return hashlib.sha256(f"{normalise(title)}\n{normalise(text)}".encode()).hexdigest()


def row_id(chunk: str) -> int:
    """The first 63 bits of a chunk id: a non-negative int64, which FAISS takes as an id."""
    return int(chunk[:16], 16) >> 1


def document_id(title: str, text: str) -> str:
    """The id of a document that brings none: the hash of its content."""
    return chunk_id(title, text)[:32]


def input_text(title: str, text: str) -> str:
    """What the compressor reads of a chunk: its title in front, where it has one."""
    return f"{title}\n{text}" if title else text


def texts_of(records: Iterable[Chunk | Document]) -> list[str]:
    """`input_text` of each record, as compressors, rankers and prompts read it."""
    return [input_text(record.title, record.text) for record in records]
