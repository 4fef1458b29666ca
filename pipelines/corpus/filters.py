"""Filters over documents: length, language and symbols.

Each filter is off by default; dropped documents are counted and written to the dead letters with their reason.
"""

import difflib
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clara.data.records import Document
from clara.errors import InputError

_LANGUAGE_CHARACTERS = 2_000  # more text does not change the result


@dataclass(frozen=True)
class Filters:
    """Conditions for a document to be kept.

    Attributes:
        min_characters: minimum length of the text.
        max_characters: maximum length of the text; 0: no limit.
        languages: allowed languages as ISO 639 codes; empty: any.
        max_symbol_ratio: maximum share of characters, without white space, that are neither letters nor digits; 1: any.
    """

    min_characters: int = 0
    max_characters: int = 0
    languages: tuple[str, ...] = ()
    max_symbol_ratio: float = 1.0

    def settings(self) -> dict[str, Any]:
        """Settings that differ from the defaults, for a recipe."""
        nothing = asdict(Filters())
        return {name: value for name, value in asdict(self).items() if value != nothing[name]}


def make_filters(
    min_characters: int, max_characters: int, languages: Sequence[str], max_symbol_ratio: float
) -> Filters:
    """Filters from the command's flags.

    Raises:
        InputError: a limit is below 0, the maximum is under the minimum, the ratio is not between 0 and 1, or a
            language is unknown.
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
                f"--language {language!r}: not a language that can be recognised; give ISO 639 codes, "
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
    """Reason (counted) and detail if the document is dropped; None if it is kept."""
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
