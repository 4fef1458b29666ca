"""Scripts that are written without spaces between words, and signs that belong to the letter before them."""

import itertools
import unicodedata

UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    # kana, bopomofo
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9d"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001aff0-\U0001b16f\U00020000-\U000323af"  # ideographs, rarer kana
    "\ua000-\ua48c\U00017000-\U00018d08"  # Yi, Tangut
)
"""Their characters, as the inside of a regular expression's set."""

VARIATIONS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Signs that choose a glyph of the character before them and change no word, as the inside of a set."""


def _marks() -> str:
    """Ranges of the characters of category Mn or Mc, without `VARIATIONS`; none is beyond U+1FFFF."""
    numbers = [n for n in range(0x300, 0x20000) if unicodedata.category(chr(n)) in ("Mn", "Mc")]
    numbers = [n for n in numbers if not 0xFE00 <= n <= 0xFE0F]
    runs = itertools.groupby(enumerate(numbers), key=lambda entry: entry[1] - entry[0])
    edges = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in edges)


MARKS = _marks()
"""Vowel signs, viramas, tones and accents that are separate characters, as the inside of a set.

`\\w` does not match them, so a word that has some (Devanagari, Tamil, Tibetan, Arabic with vowels) would be cut there.
"""
