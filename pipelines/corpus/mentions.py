"""Mentions: where a sentence of one article names another article's title, and which articles are held out.

A title can be mentioned when it is *specific*:

* its disambiguation in parentheses is dropped ("Vertigo (film)" is mentioned as "Vertigo"); a name that two articles
  then share is nobody's;
* the name has at least four characters and begins with a capital letter;
* a name of one word is no function word, and its own article does not write it small inside a sentence: "A tower is a
  tall structure" shows that Tower is a common noun. (Several words of which only the first has a capital, as in
  "Chemical element", are written small inside a sentence; matching is case-sensitive, so those are found only as
  names.)

A mention is case-sensitive, begins and ends at a word's boundary, and the longest name wins. It does not count where it
is a part of a longer name: a capitalised word or a number behind it ("David Bowie", "Apollo 17"), and for a single word
also a capitalised one in front, or "of" and another behind ("Republic of Korea"). A single word at a sentence's start
may be any word and does not count either.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clara.data.records import Document


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MASK = "____"
MIN_NAME_CHARACTERS = 4
_WORD = re.compile(r"\w+")
_DISAMBIGUATION = re.compile(r"\s*\([^()]*\)$")
# Ends of sentences: closing punctuation, perhaps quotes or brackets, white space, then what may begin one.
_END = re.compile(r"""[.!?]["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9À-Þ])""")
_ABBREVIATIONS = _words(
    "mr mrs ms dr st jr sr prof gen col capt lt sgt rev hon gov sen rep pres no vol vs cf ca c fl r b d p pp ed est "
    "inc ltd co corp bros "
    "mt ft approx etc e.g i.e lit trans jan feb mar apr jun jul aug sep sept oct nov dec"
)
FUNCTION_WORDS = _words(
    "A An The This That These Those It Its He His Him She Her They Their Them We Our You Your I My In On At By For "
    "From Of To With Within "
    "Without Under Over After Before During Since Until Between Among Through Throughout Against About As And Or But "
    "Nor If While When Where "
    "Which Who Whose Whom What Why How Because Although Though However Also Both Either Neither Each Every Some Many "
    "Most More Such Other "
    "Another One Two Three Several All Any No Not Only There Here Then Thus Today Despite Like Unlike Along According "
    "Born Located Known "
    "Used Being Having Following Including Originally Typically Usually Often Sometimes"
)


@dataclass(frozen=True)
class Mention:
    """A name at characters `start` to `end` of a sentence, and the id of the article that bears it."""

    start: int
    end: int
    name: str
    target_id: str


def is_held_out(document_id: str, share: float, salt: str = "held-out") -> bool:
    """Whether an article is held out: by its id alone, so the same in every corpus that contains it."""
    digest = hashlib.sha256(f"{salt}:{document_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def sentences(text: str) -> list[str]:
    """The sentences of a normalised text, in order. Does not cut after initials and common abbreviations."""
    found, start = [], 0
    for end in _END.finditer(text):
        last = text[start : end.start()].rsplit(" ", 1)[-1].lstrip("(\"'“").lower()
        if text[end.start()] == "." and (last in _ABBREVIATIONS or len(last) == 1 or re.fullmatch(r"(\w\.)+\w", last)):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [s for s in [*found, text[start:].strip()] if s]


def plain_title(title: str) -> str:
    """A title without its disambiguation in parentheses."""
    return _DISAMBIGUATION.sub("", title)


def specific_name(title: str, text: str) -> str:
    """The name by which an article is mentioned, or nothing where its title is too common to be recognised.

    It depends on the article alone, not on the corpus, so that a part of a corpus asks about the same names.
    """
    name = plain_title(title)
    if len(name) < MIN_NAME_CHARACTERS or not name[:1].isupper() or not _WORD.match(name):
        return ""
    if " " not in name and (
        name in FUNCTION_WORDS or re.search(rf"\b{re.escape(name[0].lower() + name[1:])}(s|es)?\b", text)
    ):
        return ""
    return name


class Names:
    """The names of a corpus, ready to be found in sentences.

    Args:
        documents: the articles.
        keep_shared: find also a name that several articles bear (as the first by id).
    """

    def __init__(self, documents: Iterable[Document], *, keep_shared: bool = False) -> None:
        bearers: dict[str, set[str]] = defaultdict(set)
        for document in documents:
            if name := specific_name(document.title, document.text):
                bearers[name].add(document.id)
        self.ids = {name: min(ids) for name, ids in bearers.items() if len(ids) == 1 or keep_shared}
        self.num_shared = sum(len(ids) > 1 for ids in bearers.values())
        self._by_first: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.ids, key=lambda n: (-len(n), n)):
            first = _WORD.match(name)
            assert first is not None
            self._by_first[first.group()].append(name)

    def find(self, sentence: str) -> Iterator[Mention]:
        """Mentions in order, none overlapping another; a name that is a part of a longer one is not a mention."""
        words = list(_WORD.finditer(sentence))
        free = 0
        for number, word in enumerate(words):
            if word.start() < free:
                continue
            for name in self._by_first.get(word.group(), ()):
                end = word.start() + len(name)
                if not sentence.startswith(name, word.start()) or not ends_word(sentence, word.start(), end):
                    continue
                free = end
                if not is_part(sentence, word.start(), end, single=" " not in name, first=number == 0):
                    yield Mention(word.start(), end, name, self.ids[name])
                break


def ends_word(sentence: str, start: int, end: int) -> bool:
    """Whether characters start to end are whole words: hyphens and apostrophes join, a possessive 's does not."""
    before, after = sentence[max(start - 1, 0) : start], sentence[end : end + 2]
    if before in ("-", "–", "'", "’", "."):
        return False
    if after[:1] in ("'", "’"):
        return after[1:].lower() in ("s", "", " ")
    return not after[:1].isalnum() and after[:1] not in ("-", "_") and not (after[:1] == "–" and after[1:].isalnum())


def is_part(sentence: str, start: int, end: int, *, single: bool, first: bool) -> bool:
    """Whether a match belongs to a longer name, or is a single word that begins a sentence."""
    following = sentence[end : end + 2]
    if len(following) == 2 and following[0] == " " and (following[1].isupper() or following[1].isdigit()):
        return True
    if not single:
        return False
    if re.match(r" of (the )?[A-ZÀ-Þ]", sentence[end:]):
        return True
    before = sentence[:start].rsplit(" ", 2)
    word = before[-2] if len(before) > 1 and before[-1] == "" else ""
    # "the Spanish Empire" is one name; "The Empire" and, after a comma, "Madrid, Spain" are not.
    return first or (word[:1].isupper() and word[-1:].isalnum() and word not in FUNCTION_WORDS)
