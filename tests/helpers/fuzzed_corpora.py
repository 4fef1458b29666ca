"""Damaged corpora: each mutated file gives documents, counted dead letters or one line, and loses no record.

What was in a file is counted by other means: lines that are not blank, what `json`, `csv` and pyarrow find.
"""

import bz2
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import zstandard

from clara.data.corpus import EMPTY
from clara.data.fields import Fields
from clara.data.records import Document
from clara.errors import InputError
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.readers import read_unit
from pipelines.corpus.splits import find_units
from pipelines.corpus.whole import corpus_files, read_corpus
from tests.helpers.awkward import JSON, PACKED, PARQUET, long_window, table
from tests.helpers.mutation import Fuzzed, fuzz, json_counts, lines_of, parquet_counts, table_counts

T = TypeVar("T")
LINES = JSON["lines"] + '{"id": "3", "title": "Only a title", "text": ""}\n{"id": 4, "text": "The fourth."}\n'
PAGE = "<page><title>T</title><ns>0</ns><id>{0}</id><revision><text>Page {0} &amp;#233;&#x41;.</text></revision></page>"
FILES: dict[str, bytes] = {
    "a.jsonl": LINES.encode(),
    "a.json": LINES.encode(),
    "list.json": JSON["list"].encode(),
    "printed.json": JSON["printed-list"].encode(),
    "wrapped.json": JSON["wrapped"].encode(),
    "windows.jsonl": JSON["windows"].encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "one-after-another.json": JSON["printed-one-after-another"].encode(),
    "a.csv": table(",").encode(),
    "a.tsv": table("\t").encode(),
    "collection.tsv": b'0\tSaid "Ona.\n1\t"Mirel" weaves.\tArlen\n2\tx\n',
    "a.txt": "Arlen ist schön.\n".encode(),
    "a.xml": f"<mediawiki>{PAGE.format(1)}{PAGE.format(2)}</mediawiki>".encode(),
    "a.parquet": PARQUET["strings"],
    "categories.parquet": PARQUET["categories"],
    "a.jsonl.gz": PACKED[".gz"](LINES.encode()),
    "a.jsonl.bz2": bz2.compress(LINES.encode()),
    "a.jsonl.xz": lzma.compress(LINES.encode()),
    "a.jsonl.zst": long_window(LINES.encode()),
}


# --- what was in a file ----------------------------------------------------------------------------------------------


def xml_counts(data: bytes) -> set[int]:
    try:
        return {sum(element.tag.rpartition("}")[2] == "page" for element in ElementTree.fromstring(data).iter())}
    except (ElementTree.ParseError, ValueError, LookupError):
        return set(range(10))


def unpacked(path: Path, data: bytes) -> bytes | None:
    """The content of a compressed file by its own library; None if it is damaged."""
    zstd = zstandard.ZstdDecompressor(max_window_size=2**31)
    packed: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress,
        ".bz2": bz2.decompress,
        ".xz": lzma.decompress,
        ".zst": lambda data: zstd.stream_reader(io.BytesIO(data), read_across_frames=True).read(),
    }
    try:
        return packed[path.suffix](data) if data else b""
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError):
        return None


def counts_of(path: Path, data: bytes) -> set[int]:
    """The numbers of records that a file may have."""
    if path.suffix in PACKED:
        content = unpacked(path, data)
        if content is None:
            return set(range(1, 20))
        counts = counts_of(path.with_suffix(""), content) | {1}
        # These libraries are silent about damage behind the last member, which is a letter.
        return counts | {count + 1 for count in counts} if path.suffix in (".bz2", ".xz") else counts
    if path.suffix == ".parquet":
        return parquet_counts(path, ("id", "title", "text"))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16", "replace").encode()
        return json_counts(data, "text", lines=True) | set(
            range(1, lines_of(data) + 1)
        )  # a part that is no UTF-16 is one more
    if path.name == "collection.tsv":
        return {lines_of(data)} | table_counts(data, "\t,;|", ["text"])
    return {
        ".jsonl": lambda: json_counts(data, "text", lines=True),
        ".json": lambda: json_counts(data, "text", lines=False),
        ".csv": lambda: table_counts(data, ",;\t|", ["text"]),
        ".tsv": lambda: table_counts(data, "\t,;|", ["text"]),
        ".txt": lambda: {1},
        ".xml": lambda: xml_counts(data),
    }[path.suffix]()


# --- the property ----------------------------------------------------------------------------------------------------


def one_line(read: Callable[[], list[T]], path: Path) -> list[T] | None:
    """What a reader returns; None if it refuses the file, in one line that names it."""
    try:
        return read()
    except InputError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


def check(path: Path, data: bytes) -> bool:
    """Read a file with every reader; whether the corpus job reads it."""
    path.write_bytes(data)
    found = one_line(lambda: [one for u in find_units([str(path)], "auto") for one in read_unit(u, Fields())], path)
    assert found is None or len(found) in counts_of(path, data), [str(one)[:300] for one in found]
    for one in found or ():
        assert one.text and one.id if isinstance(one, Document) else one.reason
        str(one).encode()
    small = one_line(lambda: read_corpus(corpus_files([str(path)])), path)
    if small is not None:
        assert found is not None
        bad = [one.reason for one in found if isinstance(one, DeadLetter) and one.reason != EMPTY and not one.dropped]
        assert bad == []
        texts = {(one.id, one.text) for one in found if isinstance(one, Document)}
        assert {(one.id, one.text) for one in small} == texts
    return found is not None


def run(name: str, folder: Path, count: int, until: float = math.inf) -> Fuzzed:
    return fuzz(name, FILES[name], lambda data: check(folder / name, data), count, until)
