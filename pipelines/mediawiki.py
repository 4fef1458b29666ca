"""MediaWiki XML dumps: their pages one by one, and where the streams of a multistream dump begin."""

import bz2
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO
from xml.etree import ElementTree

_DUMP = re.compile(r"(?P<stem>.*-multistream)(?P<part>\d*)\.xml(?P<pages>-p\d+p\d+)?\.bz2")
_INDEX = re.compile(r".*-multistream-index\d*\.txt(-p\d+p\d+)?\.bz2")
_UNREAD_NAMESPACES = ("6", "14")  # files, categories
_HEADER_BYTES = 2**20


@dataclass(frozen=True)
class Page:
    """One page of a dump; `text` is the wikitext of its revision, None where the dump has none."""

    id: str
    title: str
    namespace: str
    redirect: bool
    text: str | None


@dataclass(frozen=True)
class Stream:
    """A bz2 stream of a multistream dump: bytes `start` to `end` (−1: to the file's end), its first page's number from 1, and its pages."""

    start: int
    end: int
    first_page: int
    num_pages: int


def is_index(path: str) -> bool:
    """Whether a file's name is that of a multistream dump's index."""
    return _INDEX.fullmatch(path) is not None


def index_path(path: str) -> str:
    """Where the index of a dump stands; empty: its name is not that of a multistream dump."""
    found = _DUMP.fullmatch(path)
    return f"{found['stem']}-index{found['part']}.txt{found['pages'] or ''}.bz2" if found else ""


def streams(index: Iterable[bytes]) -> Iterator[Stream]:
    """The streams that an index lists, by lines of `offset:page id:title`.

    Raises:
        ValueError: a line is none of these, or offsets go back; the message says which line.
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


def decompressed_stream(data: bytes) -> bytes:
    """The content of the one bz2 stream that bytes begin with, as a document of its own.

    Raises:
        OSError: damaged, or cut short.
    """
    inner = bz2.BZ2Decompressor()
    content = inner.decompress(data)
    if not inner.eof:
        raise OSError("the stream is cut short, or its offset in the index is wrong")
    return b"<mediawiki>" + content + b"</mediawiki>"


def unread_prefixes(header: IO[bytes]) -> list[str]:
    """The wiki's own names of files and categories, in lower case, as the beginning of its dump tells them; empty where it tells none."""
    found = []
    try:
        for page in pages(io.BytesIO(header.read(_HEADER_BYTES))):
            if not isinstance(page, str):
                break
            found.append(page)
    except ElementTree.ParseError:  # cut where the bytes end, which is behind what is wanted
        return found
    return found


def prefix_of(element: ElementTree.Element) -> str:
    """The name, in lower case, that an element gives to a namespace whose links are no prose; empty: it is no such element."""
    if _local(element) == "namespace" and element.get("key") in _UNREAD_NAMESPACES:
        return (element.text or "").strip().lower()
    return ""


def pages(stream: IO[bytes]) -> Iterator[Page | str]:
    """The pages of a dump, in order; a string is a prefix as of `prefix_of`, which stand ahead of all pages.

    Raises:
        xml.etree.ElementTree.ParseError: not XML from some place on; what stands before has been given.
    """
    root = None
    for event, element in ElementTree.iterparse(stream, ["start", "end"]):
        if root is None:
            root = element
        if event == "start":
            continue
        if _local(element) == "page":
            yield _page(element)
            root.clear()  # what has been given is done with
        elif prefix := prefix_of(element):
            yield prefix


def _page(element: ElementTree.Element) -> Page:
    found = {_local(child): child for child in element}
    revision = found.get("revision")
    texts = [child for child in revision if _local(child) == "text"] if revision is not None else []
    # An empty element is an empty page; a deleted one has no text to speak of.
    text = (texts[-1].text or "") if texts and texts[-1].get("deleted") is None else None

    def value(name: str) -> str:
        return ((found[name].text if name in found else "") or "").strip()

    return Page(value("id"), value("title"), value("ns") or "0", "redirect" in found, text)


def _local(element: ElementTree.Element) -> str:
    """An element's name without the version of the schema."""
    return element.tag.rpartition("}")[2]
