"""Words of a text, as BM25 counts them."""

import functools
import re

from clara.data.scripts import UNSPACED

TOKENISER = 1
"""Version of `words_of`. A words part of another version is rebuilt, not linked."""

_WORD = re.compile(r"\b\w\w+\b")  # the pattern of bm25s
_UNSPACED_MARKS = "\u0e2f\u0e3f\u0e4f\u0e5a\u0e5b\u104a-\u104f\u17d4-\u17d6\u17d8-\u17db\u30a0\u30fb"  # punctuation
_RUN = re.compile(rf"(?:(?![{_UNSPACED_MARKS}])[{UNSPACED}])+")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, repeated ones repeatedly.

    A word has two or more letters or digits and is no English stop word. In scripts without spaces between words each
    pair of neighbouring characters is a word, and so is a character that has no neighbour of such a script.
    """
    lower = text.lower()
    runs = _RUN.findall(lower)
    if runs:
        lower = _RUN.sub(" ", lower)
    stopwords = _stopwords()
    words = [word for word in _WORD.findall(lower) if word not in stopwords]
    for run in runs:
        words += [run[place : place + 2] for place in range(max(1, len(run) - 1))]
    return words


@functools.cache
def _stopwords() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN  # takes a second, which commands that only plan need not wait for

    return frozenset(STOPWORDS_EN)
