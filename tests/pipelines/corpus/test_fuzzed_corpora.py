"""Damaged corpora: each mutated file gives documents, counted dead letters or one line, and loses no record.

What was in a file is counted by other means: lines that are not blank, what `json`, `csv` and pyarrow find.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
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

T = TypeVar("T")
SEED = 17
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
TOKENS = [
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\t",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"NaN",
]
SPACES = b"\xef\xbb\xbf \t\r\n"


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes."""
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        end = min(end, at + rng.choice((1, 2, 8, 64)))
        part = rng.choice(
            (
                bytes([rng.randrange(256)]),
                b"",
                data[at:end] * 2,
                rng.choice(TOKENS),
                data[at:end] + rng.choice(TOKENS),
                bytes(byte ^ (1 << rng.randrange(8)) for byte in data[at : at + 1]),
            )
        )
        data = data[:at] + part + data[end:]
        if rng.random() < 0.05:
            data = data[: rng.randint(0, len(data))]
    return data


# --- what was in a file ----------------------------------------------------------------------------------------------


def lines_of(data: bytes) -> int:
    return sum(1 for line in data.split(b"\n") if line.strip())


def json_values(data: bytes) -> int | None:
    """Number of records in one JSON value, or in several one after another; None if it is neither."""
    try:
        text, found, at = data.decode("utf-8-sig"), [], 0
        while (at := len(text) - len(text[at:].lstrip(" \t\r\n,\ufeff\x1e"))) < len(text):
            value, at = json.JSONDecoder().raw_decode(text, at)
            found.append(value)
    except (ValueError, RecursionError):
        return None
    if len(found) == 1 and isinstance(found[0], dict):
        lists = [v for v in found[0].values() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)]
        return len(lists[0]) if len(lists) == 1 and "text" not in found[0] else 1
    return sum(len(value) if isinstance(value, list) else 1 for value in found)


def json_counts(data: bytes, *, lines: bool) -> set[int]:
    """The numbers of records that a file of JSON may have: where shapes are mixed, there are two views of it."""
    counts, first = {lines_of(data)}, next((line for line in data.split(b"\n") if line.strip(SPACES)), b"")
    if (values := json_values(data)) is not None:
        counts.add(values)
    if not lines:
        counts.add(1)
    try:
        json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        counts |= set(range(1, lines_of(data) + data.count(b"{") + 1))  # read whole, from one value to the next
    return counts


def table_counts(data: bytes, delimiters: str) -> set[int]:
    if b"\r" in data.replace(b"\r\n", b"\n"):  # a line end of old Macs, or a character of a text
        return set(range(lines_of(data.replace(b"\r", b"\n")) + 1))
    for delimiter in delimiters:
        try:
            lines = io.StringIO(data.decode("utf-8-sig"), newline="")
            rows = [row for row in csv.reader(lines, delimiter=delimiter, strict=True) if any(map(str.strip, row))]
        except (csv.Error, ValueError):
            return set(range(lines_of(data) + 1))
        if rows and "text" in map(str.strip, rows[0]):
            return {len(rows) - 1}
    return {lines_of(data)}


def xml_counts(data: bytes) -> set[int]:
    try:
        return {sum(element.tag.rpartition("}")[2] == "page" for element in ElementTree.fromstring(data).iter())}
    except (ElementTree.ParseError, ValueError, LookupError):
        return set(range(10))


def parquet_counts(path: Path) -> set[int]:
    try:
        return {len(pq.read_table(path, columns=["id", "title", "text"]))}
    except (OSError, pa.ArrowException, ValueError):
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
        return packed[path.suffix](data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError):
        return None


def counts_of(path: Path, data: bytes) -> set[int]:
    """The numbers of records that a file may have."""
    if path.suffix in PACKED:
        content = unpacked(path, data)
        return set(range(1, 20)) if content is None else counts_of(path.with_suffix(""), content) | {1}
    if path.suffix == ".parquet":
        return parquet_counts(path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16", "replace").encode()
        return json_counts(data, lines=True) | set(range(1, lines_of(data) + 1))  # a part that is no UTF-16 is one more
    if path.name == "collection.tsv":
        return {lines_of(data)} | table_counts(data, "\t,;|")
    return {
        ".jsonl": lambda: json_counts(data, lines=True),
        ".json": lambda: json_counts(data, lines=False),
        ".csv": lambda: table_counts(data, ",;\t|"),
        ".tsv": lambda: table_counts(data, "\t,;|"),
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


def check(path: Path, data: bytes) -> None:
    """Read a file with every reader."""
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


def run(name: str, folder: Path, count: int) -> None:
    rng = random.Random(f"{SEED}:{name}")
    for number in range(count):
        data = mutated(FILES[name], rng)
        try:
            check(folder / name, data)
        except BaseException as error:
            raise AssertionError(f"mutation {number} of {name}: {data!r}") from error


@pytest.mark.parametrize("name", FILES)
def test_a_few_mutated_files(tmp_path: Path, name: str) -> None:
    check(tmp_path / name, FILES[name])
    run(name, tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_mutated_files(tmp_path: Path, name: str) -> None:
    run(name, tmp_path, 200)


@pytest.mark.release
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FILES)
def test_many_mutated_files(tmp_path: Path, name: str) -> None:
    run(name, tmp_path, 10_000)
