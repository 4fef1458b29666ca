"""Filters over documents: length, language and symbols.

Each is off by default, and what it drops is told with its reason.
"""

import difflib
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clara.data.records import Document
from clara.errors import InputError

_LANGUAGE_CHARACTERS = 2_000  # more of a text changes the verdict no more


@dataclass(frozen=True)
class Filters:
    """What a document must be to stay.

    Attributes:
        min_characters: of its text, at least.
        max_characters: of its text, at most; 0: no bound.
        languages: ISO 639 codes, of which its language must be one; none: any.
        max_symbol_ratio: share of the text's characters, white space aside, that are neither letters nor digits, at
            most; 1: any.
    """

    min_characters: int = 0
    max_characters: int = 0
    languages: tuple[str, ...] = ()
    max_symbol_ratio: float = 1.0

    def settings(self) -> dict[str, Any]:
        """What differs from no filter at all, for a recipe."""
        nothing = asdict(Filters())
        return {name: value for name, value in asdict(self).items() if value != nothing[name]}


def make_filters(
    min_characters: int, max_characters: int, languages: Sequence[str], max_symbol_ratio: float
) -> Filters:
    """Filters of the command's flags.

    Raises:
        InputError: a bound below 0, a maximum under the minimum, a ratio not between 0 and 1, or a language that is not
            known.
    """
    for name, value in (("min-characters", min_characters), ("max-characters", max_characters)):
        if value < 0:
            raise InputError(f"--{name} {value}: expected 0 or more characters")
    if max_characters and max_characters < min_characters:
        raise InputError(
            f"--max-characters {max_characters}: under --min-characters {min_characters}, so that nothing would stay; "
            "raise it"
        )
    if not 0 <= max_symbol_ratio <= 1:
        raise InputError(f"--max-symbol-ratio {max_symbol_ratio}: expected a share, 0 to 1")
    for language in languages:
        known = [str(label) for label in _identifier().labels]
        if language not in known:
            near = difflib.get_close_matches(language, known, 3) or ["en", "de", "fr"]
            raise InputError(
                f"--language {language!r}: not a language that can be told; ISO 639 codes are meant, "
                f"as {', '.join(near)}"
            )
    return Filters(min_characters, max_characters, tuple(sorted(set(languages))), max_symbol_ratio)


def symbol_ratio(text: str) -> float:
    """Share of characters, without white space, that are neither letters (with marks) nor digits; 0 if none."""
    shown = [character for character in text if not character.isspace()]
    return sum(unicodedata.category(character)[0] not in "LMN" for character in shown) / max(1, len(shown))


def language_of(text: str) -> str:
    """ISO 639 code of a text's most likely language, from its beginning; the model is in the library's package."""
    return str(_identifier().classify(text[:_LANGUAGE_CHARACTERS])[0])


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import (
        MODEL_FILE,
        LanguageIdentifier,
    )  # takes a second and 50 MB, which only this filter needs

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def why_dropped(document: Document, filters: Filters) -> tuple[str, str] | None:
    """Reason (counted) and detail for which a document is dropped; None: it stays."""
    length = len(document.text)
    if length < filters.min_characters:
        return "too short", f"{length} characters, --min-characters {filters.min_characters}"
    if filters.max_characters and length > filters.max_characters:
        return "too long", f"{length} characters, --max-characters {filters.max_characters}"
    if filters.max_symbol_ratio < 1 and (ratio := symbol_ratio(document.text)) > filters.max_symbol_ratio:
        return "too many symbols", f"a share of {ratio:.3f}, --max-symbol-ratio {filters.max_symbol_ratio}"
    if filters.languages and (language := language_of(document.text)) not in filters.languages:
        return "other language", f"{language}, --language {' '.join(filters.languages)}"
    return None
