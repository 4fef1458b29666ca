"""Corpora as people have them: the corpus job and the small commands read each shape alike, as what it holds."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pytest

from clara.data.fields import Fields
from clara.data.ids import spelt_id
from clara.data.records import Document, document_id, normalise
from clara.errors import InputError
from pipelines import build_examples
from pipelines.corpus import xml_characters
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.mediawiki import Page, pages
from pipelines.corpus.splits import find_units
from pipelines.corpus.whole import corpus_files, read_corpus
from tests.helpers.awkward import COLUMNS, ENCODINGS, JSON, PACKED, PARQUET, ROWS, long_window, parquet, table
from tests.helpers.corpus_readers import EXPECTED, by_the_job, read
from tests.helpers.dumps import PAGES, multistream


@pytest.mark.parametrize("shape", JSON)
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".ndjson"])
def test_json_of_any_shape_under_any_ending(tmp_path: Path, shape: str, ending: str) -> None:
    path = tmp_path / f"web-train.00000-of-00002{ending}"
    path.write_bytes(JSON[shape].encode())
    assert read(path) == EXPECTED


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packed", PACKED)
def test_every_encoding_in_every_compression(tmp_path: Path, encoding: str, packed: str) -> None:
    for name, text in (
        ("a.jsonl", JSON["lines"]),
        ("a.json", JSON["printed-wrapped"]),
        ("a.csv", table(",")),
        ("a.tsv", table("\t")),
    ):
        path = tmp_path / f"{name}{packed}"
        path.write_bytes(PACKED[packed](ENCODINGS[encoding](text)))
        if packed == "-unpacked.gz":
            path = path.rename(tmp_path / f"{name}.gz")
            if name.endswith("sv"):
                continue  # whose beginning may as well be damaged data
        assert read(path) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_text_in_the_encodings_of_windows(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(ENCODINGS[encoding]("Zöfel keeps the ferry.\r\nIt crosses at noon."))
    text = "Zöfel keeps the ferry. It crosses at noon."
    assert read(path) == [(document_id("", text), "", text)]
    path.write_bytes("Zöfel".encode("utf-16")[:-1])
    (letter,) = by_the_job(path)
    assert isinstance(letter, DeadLetter)
    assert letter.reason == "not UTF-16"
    with pytest.raises(InputError, match=r"a\.txt:1: .*not text in UTF-8"):
        read_corpus([str(path)])


def test_a_window_above_the_limit_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clara.data.streams.ZSTD_WINDOW_BYTES", 2**27)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(long_window(JSON["lines"].encode()))
    (letter,) = by_the_job(path)
    assert isinstance(letter, DeadLetter)
    assert "larger window than 134217728 bytes" in letter.detail
    with pytest.raises(InputError, match=r"a\.jsonl\.zst: .*larger window.*unpack it with zstd -d"):
        read_corpus([str(path)])


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PARQUET)
def test_parquet_of_any_writer(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.parquet").write_bytes(PARQUET[kind])
    assert read(tmp_path / "a.parquet") == EXPECTED
    (tmp_path / "part-0000").write_bytes(PARQUET[kind])  # by its content
    assert read(tmp_path / "part-0000") == EXPECTED


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1], "body": ["x"]}, r"no column 'text' for the text \(there are id, body\)"),
        ({"text": [5]}, "column 'text' is int64, expected strings; name another one with --text-field"),
        ({"text": [["a", "b"]]}, "column 'text' is list.*, expected strings"),
        ({"text": ["x"], "title": [{"en": "T"}]}, "column 'title' is struct.*--title-field"),
        ({"text": ["x"], "id": [True]}, "column 'id' is bool, expected strings or integers.*--id-field"),
        ({"text": ["x"], "id": pa.array([0], pa.timestamp("s"))}, "column 'id' is timestamp"),
    ],
)
def test_a_schema_is_refused_before_any_work(tmp_path: Path, columns: dict, message: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(columns))
    for look in (find_units, lambda paths, _: corpus_files(paths)):
        with pytest.raises(InputError, match=rf"a\.parquet: .*{message}"):
            look([str(path)], "auto")
    with pytest.raises(InputError, match=message):
        build_examples.main(["--input", str(path), "--output", str(tmp_path / "out"), "--dry-run"])


def test_values_of_parquet_that_are_no_text_are_letters_of_their_own(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"x\xff"))
    (tmp_path / "a.parquet").write_bytes(parquet({"id": ["1", "2"], "text": broken}))
    first, letter = by_the_job(tmp_path / "a.parquet")
    assert isinstance(first, Document)
    assert isinstance(letter, DeadLetter)
    assert (first.text, letter.line, letter.reason) == ("x", 2, "not UTF-8")
    (tmp_path / "b.parquet").write_bytes(parquet({"id": [1.0, 1.5, None, 2.0**53], "text": ["a", "b", "c", "d"]}))
    found = by_the_job(tmp_path / "b.parquet")
    assert [d.id if isinstance(d, Document) else d.reason for d in found] == [
        "1",
        "id not a string",
        document_id("", "c"),
        "id not a string",
    ]


def test_an_id_has_one_spelling() -> None:
    for value, spelt in ((4101.0, "4101"), (-0.0, "0"), (9007199254740993, "9007199254740993"), ("007", "007")):
        assert spelt_id(value) == spelt
    for value in (None, "", float("nan")):
        assert spelt_id(value) == ""
    for value in (True, 1.5, float("inf"), 2.0**60, ["a"], b"\xff"):
        with pytest.raises(ValueError, match=r"expected|lost"):
            spelt_id(value)


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_tables_with_a_first_line_of_names(tmp_path: Path, name: str, delimiter: str) -> None:
    for end in ("\r\n", "\r"):
        data = ("\ufeff" + table(delimiter, end)).encode()
        (tmp_path / name).write_bytes(PACKED[".gz"](data) if name.endswith(".gz") else data)
        assert read(tmp_path / name) == EXPECTED


def test_a_collection_without_names_or_quotes(tmp_path: Path) -> None:
    """MS MARCO's and ColBERT's collection.tsv: a number, a text, perhaps a title."""
    (tmp_path / "collection.tsv").write_text('0\tSaid "Ona.\n1\t"Mirel" weaves, and\tArlen\n2\tx\n')
    assert read(tmp_path / "collection.tsv") == [
        ("0", "", 'Said "Ona.'),
        ("1", "Arlen", '"Mirel" weaves, and'),
        ("2", "", "x"),
    ]


def test_cells_with_line_ends_and_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"a\n\nb ""c"""\n2\n3,d,e\n4,"f" g\n5,h\n6,"open\n7,i\n')
    found = by_the_job(tmp_path / "a.csv")
    assert [d.text if isinstance(d, Document) else (d.line, d.reason) for d in found] == [
        'a b "c"',
        (5, "not a row"),
        (6, "not a row"),
        (7, "not a row"),
        "h",
        (9, "not a row"),
        "i",
    ]
    # In a TSV a quote that is none is text.
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"Quoted" begins\n2\t"open\n3\t"whole ""cell"""\n')
    assert [text for _, _, text in read(tmp_path / "a.tsv")] == ['"Quoted" begins', '"open', 'whole "cell"']


@pytest.mark.parametrize("line", ["docid,body", "1,A text.", "D1\thttps://a\tTitle\tBody", "text,text"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_the_texts_name_is_refused_ahead(tmp_path: Path, line: str, name: str) -> None:
    (tmp_path / name).write_text(f"{line}\nx,y\n")
    for look in (find_units, lambda paths, _: corpus_files(paths)):
        with pytest.raises(InputError, match=r"a\.[ct]sv:1: the first line.*(--text-field|own name)"):
            look([str(tmp_path / name)], "auto")


# --- texts and titles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["\f", "\v", "\x85", "\x1c", "\x1d", "\x1e", "\x1f", "\u2028", "\xa0", "\r\n"])
def test_white_space_of_all_kinds_separates_words(space: str) -> None:
    assert normalise(f"end here.{space}The fees{space}") == "end here. The fees"


def test_a_title_alone_is_the_text_and_a_row_of_neither_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = '{"_id": "1", "title": "T", "text": "x"}\n{"_id": "2", "title": "", "text": ""}\n'
    (tmp_path / "a.jsonl").write_text(rows + '{"_id": "3", "title": "Only a title", "text": " "}\n')
    fields = Fields("_id")
    found = by_the_job(tmp_path / "a.jsonl", fields)
    assert [(d.id, d.title, d.text) for d in found if isinstance(d, Document)] == [
        ("1", "T", "x"),
        ("3", "", "Only a title"),
    ]
    assert [(d.line, d.reason) for d in found if isinstance(d, DeadLetter)] == [(2, "empty text")]
    with caplog.at_level("WARNING"):
        assert [d.id for d in read_corpus([str(tmp_path / "a.jsonl")], fields)] == ["1", "3"]
    assert "1 rows have neither text nor title" in caplog.text


@pytest.mark.parametrize("end", ["\\n", "\\r\\n"])
def test_the_title_in_the_first_line_of_contents(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.jsonl").write_text(
        f'{{"id": "1", "contents": "\\"Mirel Tove\\"{end}She keeps\\nit."}}\n{{"id": "2", "contents": "No title."}}\n'
    )
    assert read(tmp_path / "a.jsonl", Fields(text="contents")) == [
        ("1", "Mirel Tove", "She keeps it."),
        ("2", "", "No title."),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 1000])
def test_characters_that_xml_does_not_allow_cost_no_page(size: int) -> None:
    inside = b"a &#xD83D;&#xDE00; b &#55357;&#56832; c &#xd83d; d &#1; e &#x110000; f &#65;&#60;"
    text = (
        b"<mediawiki><page><revision><text>" + inside + b" g \xed\xa0\xbd\xed\xb8\x80 \xed\xa0\xbd.</text></revision>"
    )
    data = text + b"</page></mediawiki>"

    class Stream:
        def read(self, _: int = -1) -> bytes:
            nonlocal data
            block, data = data[:size], data[size:]
            return block

    (page,) = pages(Stream())
    assert isinstance(page, Page)
    assert page.text == "a 😀 b 😀 c \ufffd d \ufffd e \ufffd f A< g 😀 \ufffd."
    assert xml_characters.AllowedCharacters(Stream()).read() == b""


def test_surrogates_of_wikitext_are_joined(tmp_path: Path) -> None:
    begin = "<mediawiki><page><title>Sign</title><ns>0</ns><id>7</id><revision><text>The sign "
    end = "&amp;#xD83D;&amp;#xDE00; hangs &amp;#xD83D; here.</text></revision></page></mediawiki>"
    (tmp_path / "a.xml").write_text(begin + end)
    (found,) = by_the_job(tmp_path / "a.xml")
    assert isinstance(found, Document)
    assert found.text == "The sign 😀 hangs \ufffd here."
    assert [d.text for d in read_corpus([str(tmp_path / "a.xml")])] == [found.text]


def test_a_dump_is_read_by_the_small_commands_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = multistream(tmp_path, PAGES[:6], 2)
    with caplog.at_level(logging.WARNING):
        found = read_corpus(corpus_files([f"{tmp_path}/*"]))
    assert [d.id for d in found] == [d.id for d in by_the_job(path) if isinstance(d, Document)]
    assert "2 pages are redirects or in other namespaces" in caplog.text
    assert "1 rows have neither text nor title, and are left out" in caplog.text
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot be (read|counted)|damaged"):
        read_corpus([str(path)])


def test_ids_and_texts_stay_as_they_are(tmp_path: Path) -> None:
    ids = ["https://arlen.example/a/b?c=1#d", "../up/one", "Ω 日本/ä", "007", "4101.0", " 7 ", "0", "-1"]
    texts = [
        "می\u200cخواهم",
        "क्\u200dष",
        "👨\u200d👩\u200d👧",
        "🏴\u200d☠\ufe0f",
        "המגדלור",
        "👍🏽",
        "x" * 5 * 2**20,
        "é",
    ]
    rows = [json.dumps({"id": name, "text": text}) for name, text in zip(ids, texts, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"id": 9007199254740993, "text": "y"}']))
    assert [(name, text) for name, _, text in read(tmp_path / "a.jsonl")] == [
        *zip(ids, texts, strict=True),
        ("9007199254740993", "y"),
    ]


# --- what is reported ----------------------------------------------------------------------------------------------


def test_a_file_without_ids_and_fields_that_nothing_reads_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text('{"docid": 1, "Title": "T", "text": "x"}\n{"docid": 2, "text": "y"}\n')
    with caplog.at_level(logging.WARNING):
        read_corpus([str(tmp_path / "a.jsonl")])
    assert "a.jsonl: no row has `id`; it has `docid`, `Title`, `text`" in caplog.text
    assert "is it --id-field docid?" in caplog.text
    assert "field `Title` of 1 rows is not read; is it the title?" in caplog.text
    assert "fields that are not read: `Title` (1 rows), `docid` (2 rows)" in caplog.text


def test_the_field_names_of_beir_and_flashrag_are_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"_id": row["id"], "title": row["title"], "text": row["text"], "metadata": {}} for row in ROWS]
    (tmp_path / "beir.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    contents = [{"id": row["id"], "contents": f'"{row["title"]}"\n{row["text"]}'} for row in ROWS]
    (tmp_path / "flashrag.jsonl").write_text("".join(json.dumps(row) + "\n" for row in contents))
    (tmp_path / "beir.parquet").write_bytes(parquet({"_id" if k == "id" else k: v for k, v in COLUMNS.items()}))
    (tmp_path / "beir.tsv").write_text("_" + table("\t"))
    with caplog.at_level(logging.WARNING):
        for name in ("beir.jsonl", "flashrag.jsonl", "beir.parquet", "beir.tsv"):
            assert read(tmp_path / name) == EXPECTED
    assert "2 rows whose id is `_id`" in caplog.text
    assert "2 rows whose text is `contents`" in caplog.text
    # A field of that name is no id or text where the default is there, or where another name was given.
    (tmp_path / "a.jsonl").write_text('{"id": "1", "_id": "x", "text": "t", "contents": "c"}\n')
    assert read(tmp_path / "a.jsonl") == [("1", "", "t")]
    (tmp_path / "b.jsonl").write_text('{"_id": "x", "key": "1", "contents": "c", "body": "t"}\n')
    assert read(tmp_path / "b.jsonl", Fields("key", text="body")) == [("1", "", "t")]


def test_texts_of_one_id_all_become_examples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"{COLUMNS['text'][0]} {number}" for number in (0, 1, 1)]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": "1", "text": "{text}"}}\n' for text in texts))
    with caplog.at_level(logging.WARNING):
        found, _ = build_examples.corpus_examples(
            list(build_examples.read_described([str(tmp_path / "a.jsonl")])), build_examples.Settings()
        )
    assert sorted({e.text for e in found}) == sorted(set(texts))
    assert len({e.example_id for e in found}) == len(found) == 4
    assert "1 document ids are shared by different texts" in caplog.text
