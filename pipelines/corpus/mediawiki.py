"""Reads MediaWiki XML dumps: pages one by one, and the streams of a multistream dump."""

import bz2
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import IO
from xml.etree import ElementTree

from pipelines.corpus.xml_characters import AllowedCharacters, Readable

_DUMP = re.compile(r"(?P<stem>.*-multistream)(?P<part>\d*)\.xml(?P<pages>-p\d+p\d+)?\.bz2")
_INDEX = re.compile(r".*-multistream-index\d*\.txt(-p\d+p\d+)?\.bz2")
UNREAD_LINKS = ("file", "image", "category")
"""Link prefixes, in lower case, whose links are no prose in any wiki."""
_UNREAD_NAMESPACES = ("6", "14")  # files, categories
_HEADER_BYTES = 2**20
_FOOTER_BYTES = 64
_BLOCK_BYTES = 4 * 2**20
_BEGINNING, _FIRST_BLOCK = re.compile(rb"BZh[1-9]"), b"1AY&SY"  # of a bz2 stream; by chance once in 2^76 bytes


@dataclass(frozen=True)
class Page:
    """One page of a dump; `text` is the wikitext of its revision, None if the dump has none."""

    id: str
    title: str
    namespace: str
    redirect: bool
    text: str | None


@dataclass(frozen=True)
class Stream:
    """A part of a multistream dump: bytes `start` to `end` (−1: end of file), first page number from 1, and pages."""

    start: int
    end: int
    first_page: int
    num_pages: int


def is_index(path: str) -> bool:
    """Whether a file's name is that of a multistream dump's index."""
    return _INDEX.fullmatch(path) is not None


def index_path(path: str) -> str:
    """Path of the index of a dump; empty if the name is not that of a multistream dump."""
    found = _DUMP.fullmatch(path)
    return f"{found['stem']}-index{found['part']}.txt{found['pages'] or ''}.bz2" if found else ""


def streams(index: Iterable[bytes]) -> Iterator[Stream]:
    """The streams that an index lists, by lines of `offset:page id:title`.

    Raises:
        ValueError: a line has another form, or offsets decrease; the message names the line.
    """
    start, first, number = -1, 1, 0
    for number, line in enumerate(index, 1):
        offset, colon, _ = line.partition(b":")
        if not colon or not offset.isdigit() or int(offset) < start:
            raise ValueError(f"line {number} is {line[:60]!r}; expected 'offset:page id:title', offsets ascending")
        if int(offset) != start:
            if start >= 0:
                yield Stream(start, int(offset), first, number - first)
            start, first = int(offset), number
    if start >= 0:
        yield Stream(start, -1, first, number + 1 - first)


def with_unlisted(listed: Sequence[Stream], dump: IO[bytes]) -> list[Stream]:
    """All parts of a dump that contain pages, renumbered: those in its index, and others that a search finds.

    A part that can't be read is included, so that its reader reports the error. Header and footer contain no pages.
    """
    known = {stream.start: stream.num_pages for stream in listed}
    starts = sorted({0, *known, *stream_starts(dump)})
    held: list[tuple[int, int]] = []
    for start, end in zip(starts, [*starts[1:], -1], strict=True):
        num_pages, damaged = (known[start], False) if start in known else _count_pages(dump, start, end)
        if start in known or num_pages or damaged:
            held.append((start, num_pages))
    firsts = accumulate((num_pages for _, num_pages in held), initial=1)
    ends = [start for start, _ in held[1:]] + [-1]
    return [
        Stream(start, end, first, num_pages) for (start, num_pages), end, first in zip(held, ends, firsts, strict=False)
    ]


def stream_starts(dump: IO[bytes]) -> Iterator[int]:
    """Offsets of bz2 streams in a file, by their ten first bytes; reads the whole file, decompresses nothing."""
    dump.seek(0)
    before, data = 0, b""
    while block := dump.read(_BLOCK_BYTES):
        before, data = before + len(data) - len(data[-9:]), data[-9:] + block
        at = data.find(_FIRST_BLOCK)
        while at >= 0:
            if at >= 4 and _BEGINNING.fullmatch(data, at - 4, at):
                yield before + at - 4
            at = data.find(_FIRST_BLOCK, at + 1)


def _count_pages(dump: IO[bytes], start: int, end: int) -> tuple[int, bool]:
    """Number of readable pages of a part, and whether damaged data follows them."""
    number = 0
    try:
        for page in pages(_Pieces(contents(dump, start, end))):
            number += not isinstance(page, str)
    except (OSError, ElementTree.ParseError):
        return number, True
    return number, False


def part_pages(dump: IO[bytes], part: Stream) -> Iterator[Page | str]:
    """The pages of a part, as returned by `pages`; of its bz2 streams one is in memory at a time.

    Raises:
        OSError: a stream is damaged or truncated; pages of the streams before it have been returned.
        xml.etree.ElementTree.ParseError: as raised by `pages`.
    """
    return pages(_Pieces(contents(dump, part.start, part.end)))


def contents(dump: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    """The content of the bz2 streams from `start` to `end`, one by one, which together form one XML document.

    Raises:
        OSError: a stream is damaged or truncated; the streams before it have been returned.
    """
    dump.seek(start)
    data = dump.read(end - start) if end >= 0 else dump.read()
    first, last = True, b""
    while data:
        inner = bz2.BZ2Decompressor()
        content = inner.decompress(data)  # whole: a block is verified only at its end
        if not inner.eof:
            raise OSError(f"the stream at byte {start} is cut short, or its offset in the index is wrong")
        start, data = start + len(data) - len(inner.unused_data), inner.unused_data
        if first and not content.lstrip().startswith((b"<?xml", b"<mediawiki")):  # a header is an opening itself
            yield b"<mediawiki>"
        first, last = False, content[-_FOOTER_BYTES:] or last
        yield content
    if not last.rstrip().endswith(b"</mediawiki>"):
        yield b"</mediawiki>"


class _Pieces:
    """A stream whose `read` returns the next piece, of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = (piece for piece in pieces if piece)

    def read(self, _size: int = -1) -> bytes:
        """The next piece; empty at the end."""
        return next(self._pieces, b"")


def unread_prefixes(dump: IO[bytes]) -> list[str]:
    """The wiki's lower-case names of files and categories from the dump's first stream; empty if there are none.

    Raises:
        OSError: the dump does not begin with a bz2 stream.
    """
    header = bz2.BZ2Decompressor().decompress(dump.read(_HEADER_BYTES), _HEADER_BYTES)
    found = []
    try:
        for page in pages(io.BytesIO(header)):
            if not isinstance(page, str):
                break
            found.append(page)
    except ElementTree.ParseError:  # the header is truncated after the namespaces
        return found
    return found


def prefix_of(element: ElementTree.Element) -> str:
    """The lower-case name of a namespace whose links are no prose; empty for any other element."""
    if _local(element) == "namespace" and element.get("key") in _UNREAD_NAMESPACES:
        return (element.text or "").strip().lower()
    return ""


def pages(stream: Readable) -> Iterator[Page | str]:
    """The pages of a dump, in order; strings are prefixes as returned by `prefix_of` and precede all pages.

    Raises:
        xml.etree.ElementTree.ParseError: the stream is not valid XML; pages before the error have been returned.
    """
    root = None
    for event, element in ElementTree.iterparse(AllowedCharacters(stream), ["start", "end"]):
        if root is None:
            root = element
        if event == "start":
            continue
        if _local(element) == "page":
            yield _page(element)
            root.clear()  # frees the memory of returned pages
        elif prefix := prefix_of(element):
            yield prefix


def _page(element: ElementTree.Element) -> Page:
    found = {_local(child): child for child in element}
    revision = found.get("revision")
    texts = [child for child in revision if _local(child) == "text"] if revision is not None else []
    # An empty element is an empty page; a deleted revision has no text.
    text = (texts[-1].text or "") if texts and texts[-1].get("deleted") is None else None

    def value(name: str) -> str:
        return ((found[name].text if name in found else "") or "").strip()

    return Page(value("id"), value("title"), value("ns") or "0", "redirect" in found, text)


def _local(element: ElementTree.Element) -> str:
    """An element's name without the version of the schema."""
    return element.tag.rpartition("}")[2]
