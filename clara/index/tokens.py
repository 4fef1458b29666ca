"""Words of a text, as BM25 counts them."""

import functools
import re

from clara.data.scripts import MARKS, UNSPACED, VARIATIONS

TOKENISER = 2
"""Version of `words_of`. A words part of another version is rebuilt, not linked, and not searched."""

_WORD = re.compile(rf"\w[\w{MARKS}]+")  # the pattern of bm25s, with marks
_PUNCTUATION = (
    "\u0e2f\u0e3f\u0e4f\u0e5a\u0e5b\u104a-\u104f\u17d4-\u17d6\u17d8-\u17db\u1a1e-\u1a1f\u1aa0-\u1aad\u1b5a-\u1b60"
    "\u30a0\u30fb\ua9c1-\ua9cd\ua9de-\ua9df"
)
_RUN = re.compile(rf"(?:(?![{_PUNCTUATION}])[{UNSPACED}])+")
# Points that Hebrew and Arabic write or leave out, and the stroke that stretches an Arabic word.
_POINTS = "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed"
# Beside a mark a joiner only shapes letters; between letters (Persian) it parts a word as a space does.
_IGNORED = re.compile(rf"[{_POINTS}{VARIATIONS}]|(?<=[{MARKS}])[\u200c\u200d]|[\u200c\u200d](?=[{MARKS}])")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, repeated ones repeatedly.

    A word has two or more letters, digits or signs of a letter, and is no English stop word. In scripts without spaces
    between words each pair of neighbouring characters is a word, and so is a character that has no neighbour of such a
    script. Points of Hebrew and Arabic are left out, as most texts do not write them.
    """
    lower = text.lower()
    runs: list[str] = []
    if not lower.isascii():
        lower = _IGNORED.sub("", lower)
        runs = _RUN.findall(lower)
    if runs:
        lower = _RUN.sub(" ", lower)
    stopwords = _stopwords()
    words = [word for word in _WORD.findall(lower) if word not in stopwords]
    for run in runs:
        words += [run[position : position + 2] for position in range(max(1, len(run) - 1))]
    return words


@functools.cache
def _stopwords() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN  # takes a second, which commands that only plan need not wait for

    return frozenset(STOPWORDS_EN)
