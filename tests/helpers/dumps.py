"""A small MediaWiki dump, in the forms in which dumps are published."""

import bz2
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from pipelines.corpus.mediawiki import index_path

HEADER = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de"><siteinfo><namespaces>'
    '<namespace key="0" /><namespace key="6">Datei</namespace><namespace key="10">Vorlage</namespace>'
    '<namespace key="14">Kategorie</namespace>'
    "</namespaces></siteinfo>"
)


def page(number: int, text: str, *, title: str = "", namespace: int = 0, redirect: str = "") -> str:
    moved = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"<page><title>{escape(title or f'Page {number}')}</title><ns>{namespace}</ns><id>{1000 + number}</id>{moved}"
        f'<revision><id>{number}</id><model>wikitext</model><text bytes="{len(text)}" xml:space="preserve">'
        f"{escape(text)}</text></revision></page>"
    )


PAGES = [
    page(
        1,
        "'''Arlen''' is a [[town]]. [[Datei:A.jpg|thumb|A [[nested]] caption]] [[Kategorie:Towns]]",
        title="Arlen & Co",
    ),
    page(2, "#REDIRECT [[Arlen]]", redirect="Arlen"),
    page(3, "{{doc}} A template.", namespace=10),
    page(4, "Second  page,\n<b>bold</b>."),
    page(5, "{{Infobox|a=b}}"),
    page(6, "Third page."),
    "<page><title>Gone</title><ns>0</ns><id>1007</id><revision><text deleted='deleted' /></revision></page>",
]


def multistream(folder: Path, pages: Sequence[str], per_stream: int, name: str = "w-multistream.xml.bz2") -> Path:
    """A dump as its makers write it: header, streams of pages, footer; with its index."""
    data, index = bz2.compress(HEADER.encode()), ""
    for begin in range(0, len(pages), per_stream):
        part = pages[begin : begin + per_stream]
        index += "".join(f"{len(data)}:{1001 + begin + n}:Some: title\n" for n in range(len(part)))
        data += bz2.compress("".join(part).encode())
    path = folder / name
    path.write_bytes(data + bz2.compress(b"</mediawiki>"))
    Path(index_path(str(path))).write_bytes(bz2.compress(index.encode()))
    return path
