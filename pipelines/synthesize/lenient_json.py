"""JSON as language models write it: raw line ends, trailing commas, other quotes, lone backslashes, bare keys."""

import json
import re
from collections.abc import Iterator
from typing import Any

_MAX_DEPTH = 20
_MAX_WORK = 400_000  # characters
_DEEP_WORK = 20_000  # what a nest costs that is too deep to be read
_OPENING = re.compile(r"[\[{]")
_SPACE = re.compile(r"\s*")
_BARE = re.compile(r"[-+\w.]+")
_CLOSING = {'"': '"', "'": "'", "“": "”", "‘": "’"}
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_ESCAPE = re.compile(r"""\\(?:u([0-9a-fA-F]{4})|(["'\\/bfnrt\n]))""")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "\n": ""}


def json_values(text: str) -> Iterator[Any]:
    """Every outermost JSON object and array of a text, last first: a model that thinks aloud ends with its answer.

    What is no valid JSON is read as the model may have meant it. Text that only looks like the beginning of some is
    skipped; there is a bound on how much of it is read again and again.
    """
    found, place, work = [], 0, 0
    strict = json.JSONDecoder(strict=False)
    while work < _MAX_WORK and (match := _OPENING.search(text, place)):
        try:
            value, place = strict.raw_decode(text, match.start())
            found.append(value)
            continue
        except json.JSONDecodeError as error:
            work += error.pos - match.start()
        except (ValueError, RecursionError):
            work += _DEEP_WORK
        reader = _Reader(text, match.start())
        try:
            found.append(reader.value(0))
            place = reader.place
        except ValueError:
            place = match.end()
        work += reader.place - match.start()
    return reversed(found)


class _Reader:
    """Reads one value; `place` is where it ended, or where it could not be read."""

    def __init__(self, text: str, place: int) -> None:
        self._text, self.place = text, place

    def value(self, depth: int) -> Any:
        """The value at the place.

        Raises:
            ValueError: there is none.
        """
        self._skip()
        first = self._text[self.place : self.place + 1]
        if depth < _MAX_DEPTH and first == "{":
            return dict(self._items("}", depth, self._pair))
        if depth < _MAX_DEPTH and first == "[":
            return list(self._items("]", depth, self.value))
        if first in _CLOSING:
            return self._string(first)
        bare = self._word()
        return _CONSTANTS[bare] if bare in _CONSTANTS else json.loads(bare)

    def _items(self, end: str, depth: int, read: Any) -> Iterator[Any]:
        self.place += 1
        self._skip()
        while not self._text.startswith(end, self.place):
            yield read(depth + 1)
            self._skip()
            if self._text.startswith(",", self.place):
                self.place += 1
                self._skip()
            elif not self._text.startswith(end, self.place):
                raise ValueError("expected a comma")
        self.place += 1

    def _pair(self, depth: int) -> tuple[str, Any]:
        first = self._text[self.place : self.place + 1]
        key = self._string(first) if first in _CLOSING else self._word()
        self._skip()
        if not self._text.startswith(":", self.place):
            raise ValueError("expected a colon")
        self.place += 1
        return key, self.value(depth)

    def _string(self, quote: str) -> str:
        """A quoted text. A quote that nothing follows which may follow a text is part of it."""
        ended = re.compile(rf"(?<!\\)((?:\\\\)*){_CLOSING[quote]}(?=\s*(?:[,:}}\]]|$))")
        match = ended.search(self._text, self.place + 1)
        if match is None:
            self.place = len(self._text)
            raise ValueError("the text does not end")
        inside = self._text[self.place + 1 : match.end() - 1]
        self.place = match.end()
        read = _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _ESCAPED.get(m[2], m[2]), inside)
        return read.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins pairs of surrogates

    def _word(self) -> str:
        match = _BARE.match(self._text, self.place)
        if match is None:
            raise ValueError("expected a value")
        self.place = match.end()
        return match.group()

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self.place)
        assert match is not None  # it may be empty
        self.place = match.end()
