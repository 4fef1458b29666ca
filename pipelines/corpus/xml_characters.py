"""Characters that XML does not allow, which dumps hold all the same: an emoji as two surrogates, control characters."""

import re
from typing import Protocol

from clara.data.records import whole_characters

# One after another: two references may be one character. Surrogates also come as three bytes each (CESU-8).
_RUN = re.compile(rb"(?:&#[xX]?[0-9a-fA-F]{1,8};|\xed[\xa0-\xbf][\x80-\xbf])+")
_ONE = re.compile(rb"&#(?P<number>[xX]?[0-9a-fA-F]{1,8});|(?P<bytes>\xed[\xa0-\xbf][\x80-\xbf])")
_NOT_ALLOWED = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HIGH = (
    rb"&#(?:[xX]0*[dD][89abAB][0-9a-fA-F]{2}|0*(?:5529[6-9]|55[3-9]\d\d|56[0-2]\d\d|563[01]\d));"
    rb"|\xed[\xa0-\xaf][\x80-\xbf]"
)
"""The first surrogate of a pair."""
_BEGINNING = re.compile(rb"(?:" + _HIGH + rb")?(?:&[#xX0-9a-fA-F]{0,10}|\xed[\xa0-\xbf]?)?$")
_LONGEST = 24  # bytes of a run's end that the next block may continue


class Readable(Protocol):
    """A stream that is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Some more bytes; empty at the end."""
        ...


class AllowedCharacters:
    """A stream of XML in which pairs of surrogates are the character that they mean, and the rest is U+FFFD."""

    def __init__(self, stream: Readable) -> None:
        self._stream, self._held = stream, b""

    def read(self, size: int = -1) -> bytes:
        """Some more bytes; empty at the end."""
        while True:
            block = self._stream.read(size)
            data = self._held + block
            found = _BEGINNING.search(data, max(0, len(data) - _LONGEST)) if block else None
            end = found.start() if found else len(data)
            self._held = data[end:]
            if end or not block:
                return _RUN.sub(_allowed, data[:end])


def _allowed(run: re.Match[bytes]) -> bytes:
    text = "".join(_character(one) for one in _ONE.finditer(run[0]))
    return _references(_NOT_ALLOWED.sub("\ufffd", whole_characters(text))) if _NOT_ALLOWED.search(text) else run[0]


def _references(text: str) -> bytes:
    return "".join(f"&#{ord(character)};" for character in text).encode()


def _character(one: re.Match[bytes]) -> str:
    if one["bytes"]:
        return one["bytes"].decode("utf-8", "surrogatepass")
    digits = one["number"].decode()
    try:
        return chr(int(digits[1:], 16) if digits[:1] in "xX" else int(digits))
    except (ValueError, OverflowError):
        return "\uffff"  # which is not allowed either
