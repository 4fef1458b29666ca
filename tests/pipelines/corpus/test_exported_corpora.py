"""Corpora as exports of other programs have them: every reader reads each alike, or refuses it in one line."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from clara.data.records import Document
from clara.errors import InputError
from pipelines.build_questions.detect import detect
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.splits import find_units
from pipelines.corpus.whole import corpus_files, read_corpus
from tests.helpers.awkward import JSON, LINES, PARQUET, ROWS, table
from tests.helpers.corpus_readers import EXPECTED, by_the_job, read


def packed(name: str, container: str) -> bytes:
    """A file in an archive."""
    buffer, data = io.BytesIO(), JSON["lines"].encode()
    if container == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode=f"w:{container}") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


HITS = [
    {"_index": "wiki", "_id": row["id"], "_score": 1.0, "_source": {"title": row["title"], "text": row["text"]}}
    for row in ROWS
]
FILES: dict[str, bytes] = {
    "a-list-a-line.jsonl": "".join(json.dumps([row]) + "\n" for row in ROWS).encode(),
    "put-together.jsonl": "".join(f"\ufeff{line}\r\n" for line in LINES).encode(),
    "mark-at-the-end.jsonl": JSON["lines"].encode() + b"\xef\xbb\xbf\n",
    "comma-at-the-end.json": ("[\n" + "".join(f"{line},\n" for line in LINES) + "]\n").encode(),
    "excel.csv": ("\ufeffsep=;\r\n" + table(";", "\r\n")).encode(),
    "unicode-text.csv": table("\t", "\r\n").encode("utf-16"),
    "twice.json.gz": gzip.compress(gzip.compress(JSON["list"].encode())),
    "padded.jsonl.gz": gzip.compress(JSON["lines"].encode()) + bytes(512),
    "part-0000.gz": gzip.compress(JSON["lines"].encode()),
    "parquet.json": PARQUET["strings"],
    "parquet.csv": PARQUET["strings"],
    "part-0": PARQUET["strings"],
    "whole.parquet.gz": gzip.compress(PARQUET["nested"]),
    "elasticdump.jsonl": "".join(json.dumps(hit) + "\n" for hit in HITS).encode(),
    "elastic.json": json.dumps({"took": 5, "hits": {"total": {"value": 2}, "hits": HITS}}).encode(),
    "paragraphs.jsonl": "".join(json.dumps({**row, "text": row["text"].split(" ")}) + "\n" for row in ROWS).encode(),
    "mongo.jsonl": "".join(json.dumps({**row, "id": {"$oid": row["id"]}}) + "\n" for row in ROWS).encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_they_hold_the_same_two_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert read(tmp_path / name) == EXPECTED


@pytest.mark.parametrize("between", ["", " ", ", "])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_several_objects_on_a_line_are_each_read(tmp_path: Path, between: str, place: int) -> None:
    lines = [f'{{"id": "{number}", "text": "Line {number}."}}' for number in range(2)]
    lines.insert(place, between.join(f'{{"id": "{letter}", "text": "Part {letter}."}}' for letter in "ab"))
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    ids = [name for name, _, _ in read(tmp_path / "a.jsonl")]
    assert sorted(ids) == ["0", "1", "a", "b"]
    assert ids.index("b") == ids.index("a") + 1 == place + 1


def test_objects_on_a_line_with_something_else_are_one_letter(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}{"text": \n{"text": "z"} end\n[1, {"text": "w"}]\n')
    found = by_the_job(tmp_path / "a.jsonl")
    assert [d.text if isinstance(d, Document) else (d.line, d.reason) for d in found] == [
        "x",
        (2, "not JSON"),
        (3, "not JSON"),
        (4, "not an object"),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_control_characters_inside_strings_are_white_space(tmp_path: Path, name: str) -> None:
    begin = "[" if name == "a.json" else ""
    (tmp_path / name).write_text(f'{begin}{{"id": "1", "text": "end\there.\fThe fees"}}{"]" if begin else ""}\n')
    assert read(tmp_path / name) == [("1", "", "end here. The fees")]


def test_a_damaged_list_keeps_what_is_before_the_damage(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'[{LINES[0]}, {LINES[1]}, {{"id": 3, "text": ')
    *documents, letter = by_the_job(tmp_path / "a.json")
    assert [d.id for d in documents if isinstance(d, Document)] == ["4101", "4102"]
    assert isinstance(letter, DeadLetter)
    assert letter.reason == "not JSON"


def test_content_before_damage_of_a_compressed_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSON["lines"].encode()) + b"no member")
    *documents, letter = by_the_job(tmp_path / "a.jsonl.gz")
    assert [d.id for d in documents if isinstance(d, Document)] == ["4101", "4102"]
    assert isinstance(letter, DeadLetter)
    assert (letter.line, letter.reason) == (2, "damaged file")
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be read to its end"):
        read_corpus([str(tmp_path / "a.jsonl.gz")])


def test_nothing_is_lost_of_cells_and_fields_without_a_value(tmp_path: Path) -> None:
    """`\\N` is nothing in dumps of databases; null beside null is an empty row; a title may be a number."""
    (tmp_path / "a.tsv").write_text("id\ttitle\ttext\n1\t\\N\tx\n2\tT\t\\N\n")
    assert read(tmp_path / "a.tsv") == [("1", "", "x"), ("2", "", "T")]
    rows = [{"id": 1, "title": None, "text": None}, {"id": 2, "title": 1984, "text": "A novel."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    letter, document = by_the_job(tmp_path / "a.jsonl")
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.document_id) == ("empty text", "1")
    assert [(d.id, d.title) for d in read_corpus([str(tmp_path / "a.jsonl")])] == [("2", "1984")]
    assert isinstance(document, Document)


@pytest.mark.parametrize("name", ["e.jsonl", "e.json", "e.csv", "e.jsonl.gz"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_an_empty_file_holds_no_record(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert by_the_job(tmp_path / name) == []


OTHERS = {
    "a.jsonl.zip": packed("a.jsonl", "zip"),
    "a.json": packed("a.jsonl", "zip"),
    "a.jsonl": packed("a.jsonl", ""),
    "a.jsonl.gz": packed("a.jsonl", "gz"),
    "a.tar.gz": packed("a.jsonl", "gz"),
    "a.arrow": b"ARROW1\0\0" + bytes(64),
    "data-00000-of-00001.arrow": b"\xff\xff\xff\xff" + bytes(64),
    "a.txt": b"%PDF-1.7\n",
    "a.csv": b"SQLite format 3\0" + bytes(64),
}


@pytest.mark.parametrize("name", OTHERS)
def test_archives_and_other_binary_files_are_refused_ahead(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(OTHERS[name])
    for look in (lambda path: find_units([path], "auto"), lambda path: read_corpus(corpus_files([path]))):
        with pytest.raises(InputError, match=rf"{name}: .*, which is not read; (unpack|write|extract|export) .*"):
            look(str(tmp_path / name))


def test_columns_of_one_name_are_refused_ahead(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(["1"]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["id", "text", "text"]), tmp_path / "a.parquet")
    for look in (lambda path: find_units([path], "auto"), lambda path: corpus_files([path])):
        with pytest.raises(InputError, match=r"a\.parquet: two columns are named 'text'"):
            look(str(tmp_path / "a.parquet"))


def test_a_number_of_very_many_digits_is_a_letter_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": ' + "1" * 5000 + ', "text": "x"}\n{"id": "2", "text": "y"}\n')
    letter, document = by_the_job(tmp_path / "a.jsonl")
    assert isinstance(letter, DeadLetter)
    assert isinstance(document, Document)
    assert (letter.reason, document.id) == ("not JSON", "2")


def test_what_the_library_datasets_writes_beside_data_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("dataset_info.json", "state.json", "dataset_dict.json"):
        (tmp_path / name).write_text('{"features": {}}')
    (tmp_path / "a.jsonl").write_text(JSON["lines"])
    assert [Path(name).name for name in corpus_files([f"{tmp_path}/*"])] == ["a.jsonl"]
    assert "3 matching files are no data by their names" in caplog.text


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_utf_16_and_32_that_are_cut_are_refused_in_one_line(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes("id\ttext\tquestion\n7\tAda\tWho?\n".encode(encoding)[:-1])

    def small(paths: list[str]) -> None:
        read_corpus(corpus_files(paths))

    for read_file in (small, lambda paths: detect(paths, judged=False)):
        with pytest.raises(InputError, match=rf"{name}.*utf-\d\d") as caught:
            read_file([str(tmp_path / name)])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "list.json", "list.jsonl", "line.jsonl"])
def test_an_object_with_a_name_twice_is_a_letter_of_its_own(tmp_path: Path, name: str) -> None:
    twice = '{"id": "2", "text": "first", "text": "second"}'
    rows = [LINES[0], twice, LINES[1]]
    content = {"list": f"[{','.join(rows)}]", "line": " ".join(rows)}.get(name.partition(".")[0], "\n".join(rows))
    (tmp_path / name).write_text(content, encoding="utf-8")
    first, letter, last = by_the_job(tmp_path / name)
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.detail) == ("name twice", "'text' occurs twice in an object; keep one of its values")
    assert [one.id for one in (first, last) if isinstance(one, Document)] == ["4101", "4102"]
    with pytest.raises(InputError, match=rf"{name}:\d: .*: name twice, 'text' occurs twice"):
        read_corpus(corpus_files([str(tmp_path / name)]))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_tables_put_together_have_one_line_of_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(2 * table("\t" if name == "a.tsv" else ","), encoding="utf-8")
    found = by_the_job(tmp_path / name)
    assert [(one.line, one.detail) for one in found if isinstance(one, DeadLetter)] == [
        (4, "the names of the columns again, as where tables are put together")
    ]
    assert len(found) == 5
    with pytest.raises(InputError, match=rf"{name}:4: .*the names of the columns again"):
        read_corpus(corpus_files([str(tmp_path / name)]))


def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4f\nsize 12\n")
        for look in (corpus_files, lambda paths: find_units(paths, "auto")):
            with pytest.raises(InputError, match=rf"{name}: a pointer of Git LFS .*git lfs pull"):
                read_corpus(look([str(tmp_path / name)]))


def test_a_name_twice_before_other_damage_is_one_letter(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES[0] + '\n{"id": {"a": 1, "a": 2}, "text": [}\n' + LINES[1] + "\n")
    (tmp_path / "a.json").write_text('{"data": [{"id": 1, "id": 2, "text": "x"}], "tot')
    assert [one.reason for one in by_the_job(tmp_path / "a.jsonl") if isinstance(one, DeadLetter)] == ["not JSON"]
    assert [one.reason for one in by_the_job(tmp_path / "a.json") if isinstance(one, DeadLetter)] == ["not JSON"]
