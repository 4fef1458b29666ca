"""The body of a chat completion, in the forms that OpenAI-compatible endpoints give it."""

from collections.abc import Mapping
from typing import Any


def content(message: Mapping[str, Any]) -> str:
    """What a message says: its text, its parts of type text, a refusal, or the arguments of a tool; may be empty.

    Raises:
        TypeError: its content has another form.
    """
    found = _text(message.get("content"))
    if found.strip():
        return found
    if isinstance(refusal := message.get("refusal"), str) and refusal.strip():
        return refusal
    calls = message.get("tool_calls") or []
    return "".join(str(call["function"]["arguments"]) for call in calls[:1])


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_part, value))
    if isinstance(value, dict):
        return _part(value)
    raise TypeError(f"content is {type(value).__name__}")


def _part(part: Any) -> str:
    """The text of a part; thoughts, pictures and the like have none."""
    if isinstance(part, str):
        return part
    if part.get("type", "text") not in ("text", "output_text"):
        return ""
    text = part.get("text")
    return str(text.get("value", "")) if isinstance(text, dict) else str(text or "")


def usage(body: Mapping[str, Any]) -> tuple[int, int] | None:
    """Prompt and reply tokens as the endpoint counts them; None if it does not say."""
    given = body.get("usage")
    if not isinstance(given, dict):
        return None
    counts = given.get("prompt_tokens"), given.get("completion_tokens")
    whole = [int(n) for n in counts if isinstance(n, int) or (isinstance(n, float) and n.is_integer())]
    return (whole[0], whole[1]) if len(whole) == 2 and min(whole) >= 0 else None


def error_of(error: Any) -> tuple[int, str]:
    """Status (0: it has none) and message of an error, which is a text or an object."""
    if not isinstance(error, dict):
        return 0, str(error)
    codes = [str(error.get(name)) for name in ("code", "status", "status_code")]
    status = next((int(code) for code in codes if code.isascii() and code.isdigit()), 0)
    return status, str(error.get("message") or error)
