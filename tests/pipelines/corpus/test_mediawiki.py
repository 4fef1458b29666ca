"""MediaWiki dumps: every form of a dump gives the same documents, omissions are counted; wikitext becomes prose."""

import bz2
import lzma
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.data.fields import Fields
from clara.data.records import Document
from clara.errors import InputError
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.mediawiki import Stream, index_path, is_index, streams
from pipelines.corpus.readers import read_unit
from pipelines.corpus.splits import Unit, find_units
from pipelines.corpus.wikitext import plain_text
from tests.helpers.dumps import HEADER, PAGES, multistream
from tests.helpers.fuzz import examples


def read(units: Sequence[Unit]) -> list[Document | DeadLetter]:
    return [found for unit in units for found in read_unit(unit, Fields())]


def test_every_form_of_a_dump_gives_the_same_documents_and_letters(tmp_path: Path) -> None:
    whole = (HEADER + "".join(PAGES) + "</mediawiki>").encode()
    (tmp_path / "w.xml").write_bytes(whole)
    expected = read(find_units([str(tmp_path / "w.xml")], "auto"))
    events = [
        (f.line, f.id, f.title, f.text) if isinstance(f, Document) else (f.line, f.reason, f.snippet, f.dropped)
        for f in expected
    ]
    assert events == [
        (1, "1001", "Arlen & Co", "Arlen is a town."),
        (2, "redirect", "Page 2", True),
        (3, "other namespace", "Page 3", True),
        (4, "1004", "Page 4", "Second page, bold."),
        (5, "empty text", events[4][2], False),
        (6, "1006", "Page 6", "Third page."),
        (7, "no text", "Gone", False),
    ]
    for suffix, compress in ((".bz2", bz2.compress), (".xz", lzma.compress)):
        (tmp_path / f"w.xml{suffix}").write_bytes(compress(whole))
        assert [_placeless(f) for f in read(find_units([str(tmp_path / f"w.xml{suffix}")], "auto"))] == [
            _placeless(f) for f in expected
        ]
    for per_stream in (1, 3, 100):
        folder = tmp_path / str(per_stream)
        folder.mkdir()
        path = multistream(folder, PAGES, per_stream)
        units = find_units([f"{folder}/*"], "auto")
        assert len(units) == -(-len(PAGES) // per_stream)
        assert [_placeless(f) for f in read(units)] == [_placeless(f) for f in expected]
        Path(index_path(str(path))).unlink()
        units = find_units([str(path)], "auto")
        assert len(units) == 1
        assert [_placeless(f) for f in read(units)] == [_placeless(f) for f in expected]


def _placeless(found: Document | DeadLetter) -> tuple[object, ...]:
    return tuple(value for name, value in vars(found).items() if name != "source")


def test_a_damaged_stream_costs_its_own_pages_only(tmp_path: Path) -> None:
    path = multistream(tmp_path, PAGES, 2)
    units = find_units([str(path)], "auto")
    data = bytearray(path.read_bytes())
    begin = units[1].stream.start if units[1].stream else 0
    data[begin + 20] ^= 255
    path.write_bytes(data)
    found = read(units)
    assert [f.reason for f in found if isinstance(f, DeadLetter) and not f.dropped] == [
        "damaged file",
        "empty text",
        "no text",
    ]
    assert [f.id for f in found if isinstance(f, Document)] == ["1001", "1006"]


def test_pages_in_the_index_but_not_in_the_dump_are_reported(tmp_path: Path) -> None:
    path = multistream(tmp_path, PAGES, 4)
    index = Path(index_path(str(path)))
    lines = bz2.decompress(index.read_bytes()).splitlines(keepends=True)
    index.write_bytes(bz2.compress(b"".join([*lines, lines[-1]])))
    found = read(find_units([str(path)], "auto"))
    assert isinstance(found[-1], DeadLetter)
    assert (found[-1].reason, found[-1].detail[:40]) == ("damaged file", found[-1].detail[:40])
    assert "3 pages in the stream" in found[-1].detail
    assert "its index lists 4" in found[-1].detail


def lacking(path: Path, pages: range) -> None:
    """Take the lines of pages, numbered from 0, out of a dump's index."""
    index = Path(index_path(str(path)))
    lines = bz2.decompress(index.read_bytes()).splitlines(keepends=True)
    index.write_bytes(bz2.compress(b"".join(line for number, line in enumerate(lines) if number not in pages)))


@pytest.mark.parametrize("pages", [range(2), range(2, 4), range(2, 6), range(6, 7), range(4, 7), range(6)])
def test_pages_of_streams_that_the_index_lacks_are_read_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pages: range
) -> None:
    path = multistream(tmp_path, PAGES, 2)
    expected, units = read(find_units([str(path)], "auto")), find_units([str(path)], "auto")
    assert not caplog.messages
    lacking(path, pages)
    assert find_units([str(path)], "auto") == units
    assert read(find_units([str(path)], "auto")) == expected
    assert f"lacks {-(-len(pages) // 2)} streams with {len(pages)} pages" in caplog.messages[0]


def test_streams_that_a_range_holds_besides_its_first_are_read_to_the_last(tmp_path: Path) -> None:
    """A stream whose beginning is no longer recognised: what comes before it is read, the damage is reported."""
    path = multistream(tmp_path, PAGES, 2)
    starts = [unit.stream.start for unit in find_units([str(path)], "auto") if unit.stream]
    both = Stream(starts[0], starts[2], 1, 4)
    assert read([Unit(str(path), "w", "mediawiki", "bz2", 0, 1, both)]) == read(
        [
            Unit(str(path), "w", "mediawiki", "bz2", 0, 1, Stream(starts[0], starts[1], 1, 2)),
            Unit(str(path), "w", "mediawiki", "bz2", 0, 3, Stream(starts[1], starts[2], 3, 2)),
        ]
    )
    data = bytearray(path.read_bytes())
    data[starts[1] + 5] ^= 255
    path.write_bytes(data)
    lacking(path, range(2, 4))
    found = read(find_units([str(path)], "auto"))
    assert [f.id for f in found if isinstance(f, Document)] == ["1001", "1006"]
    assert [(f.line, f.reason) for f in found if isinstance(f, DeadLetter)][:2] == [
        (2, "redirect"),
        (2, "damaged file"),
    ]


def test_bytes_between_the_header_and_the_first_stream_are_reported(tmp_path: Path) -> None:
    path = multistream(tmp_path, PAGES, 2)
    first = next(unit.stream.start for unit in find_units([str(path)], "auto") if unit.stream)
    data = path.read_bytes()
    path.write_bytes(data[:first] + b"?" * 7 + data[first:])
    index = Path(index_path(str(path)))
    moved = [line.partition(b":") for line in bz2.decompress(index.read_bytes()).splitlines(keepends=True)]
    index.write_bytes(bz2.compress(b"".join(b"%d:" % (int(offset) + 7) + rest for offset, _, rest in moved)))
    found = read(find_units([str(path)], "auto"))
    assert [f.reason for f in found if isinstance(f, DeadLetter) and not f.dropped] == [
        "damaged file",
        "empty text",
        "no text",
    ]
    assert [f.id for f in found if isinstance(f, Document)] == ["1001", "1004", "1006"]


def test_a_dump_whose_header_and_footer_are_in_the_streams_of_its_pages(tmp_path: Path) -> None:
    expected = read(find_units([str(multistream(tmp_path, PAGES, 3))], "auto"))
    parts = [HEADER + "".join(PAGES[:3]), "".join(PAGES[3:6]), PAGES[6] + "</mediawiki>\n"]
    data, index = b"", b""
    for number, part in enumerate(parts):
        index += b"%d:1:T\n" % len(data) * (1 if number == 2 else 3)
        data += bz2.compress(part.encode())
    for name, lines in (("a", index), ("b", b"".join(index.splitlines(keepends=True)[3:]))):
        path = tmp_path / f"{name}-multistream.xml.bz2"
        path.write_bytes(data)
        Path(index_path(str(path))).write_bytes(bz2.compress(lines))
        assert [_placeless(f) for f in read(find_units([str(path)], "auto"))] == [_placeless(f) for f in expected]


def test_truncated_xml_gives_the_pages_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "w.xml").write_text(HEADER + PAGES[0] + PAGES[3][:60])
    first, dead = read(find_units([str(tmp_path / "w.xml")], "auto"))
    assert isinstance(first, Document)
    assert isinstance(dead, DeadLetter)
    assert (dead.reason, dead.line) == ("damaged file", 1)


def test_a_bad_index_and_an_index_alone_are_refused(tmp_path: Path) -> None:
    path = multistream(tmp_path, PAGES, 4)
    index = Path(index_path(str(path)))
    with pytest.raises(InputError, match="names nothing but the index of a dump"):
        find_units([str(index)], "auto")
    for bad in (b"not an index\n", b"50:1:a\n40:2:b\n"):
        index.write_bytes(bz2.compress(bad))
        with pytest.raises(InputError, match=r"index\.txt\.bz2: cannot be read \(line \d is"):
            find_units([str(path)], "auto")
    index.write_bytes(b"no bz2")
    with pytest.raises(InputError, match=r"index\.txt\.bz2: cannot be read"):
        find_units([str(path)], "auto")


def test_names_of_dumps_and_their_indices() -> None:
    dump = "/d/enwiki-20260101-pages-articles-multistream1.xml-p1p41242.bz2"
    index = "/d/enwiki-20260101-pages-articles-multistream-index1.txt-p1p41242.bz2"
    assert index_path(dump) == index
    assert is_index(index)
    assert not is_index(dump)
    assert index_path("/d/enwiki-20260101-pages-articles.xml.bz2") == ""


@given(st.lists(st.integers(1, 4), max_size=12))
@settings(max_examples=examples(50), deadline=None)
def test_streams_partition_the_pages(sizes: list[int]) -> None:
    lines = [f"{100 * number}:{n}:T\n".encode() for number, size in enumerate(sizes, 1) for n in range(size)]
    found = list(streams(lines))
    assert [s.num_pages for s in found] == sizes
    assert [s.first_page for s in found] == [1 + sum(sizes[:n]) for n in range(len(sizes))]
    assert [(s.start, s.end) for s in found] == [
        (100 * n, 100 * n + 100 if n < len(sizes) else -1) for n in range(1, len(sizes) + 1)
    ]
    assert list(streams([b"7:1:a\n"])) == [Stream(7, -1, 1, 1)]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''A''' ''b'' <b>c</b>", "A b c"),
        ("a [[b]], [[c|d]]s and [[:Category:E]]", "a b, ds and Category:E"),
        ("a[[File:X.png|thumb|b [[c]]]][[Category:D]][[de:E]][[zh-yue:F]]", "a"),
        ("[[Star Trek: Voyager]]", "Star Trek: Voyager"),
        ("a<ref>b</ref><ref name=c /> d<!-- e -->", "a d"),
        ("a {{b|c}}d {{{e|f}}}", "a d f"),
        ("== A ==\nb<br />c", "\nA\n\nb\nc"),
        ("{| class=x\n! a\n|-\n| b\n|}\nc", "\nc"),
        ("* a\n# b", " a\n b"),
        ("[http://x.org a] http://y.org [http://z.org]", "a http://y.org "),
        ("5&nbsp;km &amp; <math>x</math>", "5\xa0km & "),
        ("__NOTOC__a (; ) b", "a  b"),
        ("plain [not a link", "plain [not a link"),
    ],
)
def test_wikitext_becomes_prose(wikitext: str, text: str) -> None:
    assert plain_text(wikitext) == text


def test_names_of_files_and_categories_are_the_wikis_own() -> None:
    assert plain_text("a[[Datei:X.png|b]]") == "ab"
    assert plain_text("a[[Datei:X.png|b]]", {"datei"}) == "a"
