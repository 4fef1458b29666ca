"""Spans of a sentence that a cloze question may mask: names, numbers and dates, long words."""

import re

from pipelines.corpus.mentions import FUNCTION_WORDS, Names

_JOINED = r"(?:of|of the|the|de|du|la|le|van|von|al)"
_CAPITALISED = r"[A-ZÀ-Þ][\w’'.-]*\w"
_NAME = re.compile(rf"\b{_CAPITALISED}(?: (?:{_JOINED} )?(?:{_CAPITALISED}|[IVX]+\b))+")
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = rf"\d{{1,2}} {_MONTH} \d{{4}}|{_MONTH} \d{{1,2}}, \d{{4}}"
_NUMBER = re.compile(rf"(?<![\w.,–±−-])(?:{_DATE}|\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?)(?!\w|[.,–-]\d)")
_LONG_WORD = re.compile(r"\b[^\W\d_A-Z]{7,}\b")


def names_in(sentence: str) -> list[tuple[int, int]]:
    """Character spans of the names of several capitalised words, without function words in front."""
    found = []
    for match in _NAME.finditer(sentence):
        start, end = match.span()
        while (space := sentence.find(" ", start, end)) > 0 and sentence[start:space] in FUNCTION_WORDS:
            start = space + 1
        if " " in sentence[start:end]:
            found.append((start, end))
    return found


def spans(sentence: str, own_name: str, others: Names) -> list[tuple[int, int]]:
    """Character spans of a sentence to mask: its own title, names of several words, numbers, else the longest word.

    No span overlaps another article's name or occurs twice in the sentence.
    """
    own = re.search(rf"\b{re.escape(own_name)}\b", sentence, re.IGNORECASE) if own_name else None
    matches = [own.span()] if own else []
    taken = [(m.start, m.end) for m in others.find(sentence) if m.name != own_name]
    found: list[tuple[int, int]] = []
    matches += names_in(sentence)
    matches += [m.span() for m in _NUMBER.finditer(sentence)]
    longest = sorted((m.span() for m in _LONG_WORD.finditer(sentence)), key=lambda s: s[0] - s[1])
    for start, end in [*matches, *longest]:
        if found and (start, end) in longest:
            break
        free = all(end <= a or start >= b for a, b in [*taken, *found])
        if free and sentence.lower().count(sentence[start:end].lower()) == 1:
            found.append((start, end))
    return sorted(found)
