"""Corpus files: each format and compression; each kind of bad record is a dead letter with position and reason."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from clara.data import json_records
from clara.data.fields import Fields
from clara.data.records import Document, document_id
from clara.errors import InputError
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.readers import read_unit
from pipelines.corpus.splits import Unit, describe, find_units

ROWS = [{"id": f"r{n}", "title": "Arlen", "text": f"Text  number {n}."} for n in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(path: Path, file_format: str = "auto", fields: Fields = Fields()) -> list[Document | DeadLetter]:  # noqa: B008
    return [found for unit in find_units([str(path)], file_format) for found in read_unit(unit, fields)]


def zstd_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", zstd_frames),
        (".xz", lzma.compress),
        (".xz", lambda d: lzma.compress(d[:99]) + lzma.compress(d[99:])),
        (".gz", lambda d: gzip.compress(d[:99]) + gzip.compress(d[99:])),
    ],
)
def test_jsonl_in_each_compression(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(compress(LINES))
    expected = [Document(f"r{n}", "Arlen", f"Text number {n}.", str(path), n + 1) for n in range(5)]
    assert read(path) == expected


def test_json_array_parquet_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "b.parquet", row_group_size=2)
    (tmp_path / "c.txt").write_text("Just  text.\n")
    for name in ("a.json", "b.parquet"):
        found = read(tmp_path / name)
        assert [(d.id, d.text, d.line) for d in found if isinstance(d, Document)] == [
            (f"r{n}", f"Text number {n}.", n + 1) for n in range(5)
        ]
    assert len(find_units([str(tmp_path / "b.parquet")], "auto")) == 3
    assert read(tmp_path / "c.txt") == [
        Document(document_id("", "Just text."), "", "Just text.", str(tmp_path / "c.txt"), 1)
    ]


def test_other_field_names_and_integer_ids(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"key": 7, "head": null, "body": "Text."}\n')
    assert read(path, fields=Fields("key", "head", "body")) == [Document("7", "", "Text.", str(path), 1)]


BAD_LINES = [
    (b"{not json", "not JSON"),
    (b'{"text": "' + b"\xff" + b'"}', "not UTF-8"),
    (b'{"title": "only"}', "no text"),
    (b'{"text": null}', "no text"),
    (b'{"text": 5}', "text not a string"),
    (b'{"text": "t", "title": ["x"]}', "text not a string"),
    (b'{"text": "t", "id": {}}', "id not a string"),
    (b'{"text": "\\ud800"}', "not Unicode"),
    (b'{"text": " \\u0000 \\n"}', "empty text"),
    (b'["a", "list"]', "not an object"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES)
def test_a_bad_line_is_reported_and_its_neighbours_stay(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "before"}\n\n' + bad + b'\n{"text": "after"}')
    first, dead, last = read(path)
    assert isinstance(dead, DeadLetter)
    assert (dead.source, dead.line, dead.reason) == (str(path), 3, reason)
    assert len(dead.snippet) <= 200
    dead.snippet.encode()
    assert [d.text for d in (first, last) if isinstance(d, Document)] == ["before", "after"]


def test_a_null_character_is_taken_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "nul\\u0000l"}\n')
    assert [d.text for d in read(tmp_path / "a.jsonl") if isinstance(d, Document)] == ["null"]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstandard.compress), (".xz", lzma.compress)],
)
def test_a_truncated_file_gives_the_records_before_the_end_or_an_error(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    data = compress(b"".join(json.dumps({"text": f"{n} {n * 7919 % 104729}"}).encode() + b"\n" for n in range(20_000)))
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(data[: len(data) // 2])
    found = read(path)
    assert isinstance(found[-1], DeadLetter)
    assert found[-1].reason == "damaged file"
    assert all(isinstance(d, Document) for d in found[:-1])
    if suffix not in (".bz2", ".xz"):  # whose blocks are larger than what is left
        assert len(found) > 5_000


def test_damaged_parquet_and_a_missing_column_are_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    assert [d.reason for d in read(tmp_path / "bad.parquet") if isinstance(d, DeadLetter)] == ["damaged file"]
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"other.parquet: no column 'text' .*there are body.*--text-field"):
        read(tmp_path / "other.parquet")


def test_a_line_without_end_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "MAX_RECORD_BYTES", 50)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 180 + '"}\n{"text": "after"}\n')
    dead, after = read(tmp_path / "a.jsonl")
    assert isinstance(dead, DeadLetter)
    assert (dead.reason, dead.line) == ("record too long", 1)
    assert isinstance(after, Document)
    assert (after.text, after.line) == ("after", 2)


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    (tmp_path / "folder.jsonl").mkdir()
    monkeypatch.chdir(tmp_path)
    units = find_units(["*.jsonl", "a.jsonl"], "auto")
    assert [(u.path, u.name) for u in units] == [(str(tmp_path / n), n) for n in ("a.jsonl", "b.jsonl")]
    assert {entry["path"] for entry in describe(units)} == {"a.jsonl", "b.jsonl"}
    with pytest.raises(InputError, match=r"--input 'nothing/\*.jsonl': no such file"):
        find_units(["a.jsonl", "nothing/*.jsonl"], "auto")
    (tmp_path / "c.pdf").touch()
    with pytest.raises(InputError, match=r"c\.pdf: its format is not known"):
        find_units(["c.pdf"], "auto")
    assert find_units(["c.pdf"], "text") == [Unit(str(tmp_path / "c.pdf"), "c.pdf", "text")]
    with pytest.raises(InputError, match="--format 'xml'"):
        find_units(["c.pdf"], "xml")


def test_input_that_changed_is_other_input(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    before = describe(find_units([str(path)], "auto"))
    path.write_bytes(LINES.replace(b"4", b"5"))
    assert describe(find_units([str(path)], "auto")) != before
