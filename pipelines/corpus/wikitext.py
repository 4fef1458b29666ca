"""Wikitext to plain text: what a reader of the page sees as prose.

Templates, tables, notes, pictures and categories are left out.
"""

import re
from collections.abc import Collection

import mwparserfromhell
from mwparserfromhell.nodes import Argument, ExternalLink, Heading, HTMLEntity, Node, Tag, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from pipelines.corpus.mediawiki import UNREAD_LINKS

_UNREAD_TAGS = {
    "ref",
    "references",
    "gallery",
    "math",
    "chem",
    "table",
    "timeline",
    "score",
    "imagemap",
    "hiero",
    "graph",
    "mapframe",
    "maplink",
    "syntaxhighlight",
    "source",
    "templatestyles",
    "style",
    "indicator",
}
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z-]+)?$")
_BEHAVIOUR_SWITCH = re.compile(r"__[A-ZÀ-ÞА-Я]+__")
_EMPTY_BRACKETS = re.compile(r"[(（][\s,;:，；]*[)）]")


def plain_text(wikitext: str, unread_links: Collection[str] = UNREAD_LINKS) -> str:
    """The prose of a page.

    Args:
        wikitext: the source of the page.
        unread_links: prefixes, in lower case, of links that are left out: files and categories, under the wiki's own
            names too.

    Raises:
        mwparserfromhell.parser.ParserError: the source can't be parsed.
    """
    text = _of_code(mwparserfromhell.parse(wikitext), unread_links)
    # A removed template may leave empty brackets behind.
    return _EMPTY_BRACKETS.sub("", _BEHAVIOUR_SWITCH.sub("", text))


def _of_code(code: Wikicode | None, unread_links: Collection[str]) -> str:
    return "".join(_of_node(node, unread_links) for node in code.nodes) if code is not None else ""


def _of_node(node: Node, unread_links: Collection[str]) -> str:
    if isinstance(node, Text):
        return str(node.value)
    if isinstance(node, HTMLEntity):
        return str(node.normalize())
    if isinstance(node, Wikilink):
        return _of_link(node, unread_links)
    if isinstance(node, ExternalLink):
        return _of_code(node.title, unread_links) if node.brackets else str(node.url)
    if isinstance(node, Heading):
        return f"\n{_of_code(node.title, unread_links).strip()}\n"
    if isinstance(node, Argument):
        return _of_code(node.default, unread_links)
    if isinstance(node, Tag):
        name = str(node.tag).strip().lower()
        if name in _UNREAD_TAGS:
            return ""
        return "\n" if name == "br" else _of_code(node.contents, unread_links)
    return ""  # templates, comments


def _of_link(node: Wikilink, unread_links: Collection[str]) -> str:
    title = str(node.title).strip()
    prefix, colon, _ = title.partition(":")
    # A link with a leading colon is part of the prose.
    if colon and prefix and (prefix.strip().lower() in unread_links or _LANGUAGE_LINK.fullmatch(prefix)):
        return ""
    return _of_code(node.text, unread_links) if node.text is not None else title.removeprefix(":")
