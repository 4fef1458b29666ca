"""Lists and objects that a table stores as text."""

import ast
import io
import itertools
import json
import tokenize
from typing import Any


def parsed(value: Any) -> Any:
    """A list or an object that a table stores as text: JSON, or as Python writes it. Other values as they are."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return value
    try:
        return _encodable(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        # Python joins neighbouring strings, as in numpy's ['a' 'b'], into one.
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string.strip()]
        if any(one == other == tokenize.STRING for one, other in itertools.pairwise(kinds)):
            text = _with_commas(text)
        return _encodable(ast.literal_eval(text))
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        return value


def _encodable(found: Any) -> Any:
    """A value of text, if none of its strings holds a lone surrogate.

    Raises:
        ValueError: one does.
    """
    json.dumps(found, ensure_ascii=False, default=str, skipkeys=True).encode()
    return found


def _with_commas(text: str) -> str:
    """Text of a list of strings, with a comma between each two."""
    strings = [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.STRING]
    return f"[{', '.join(strings)}]"
