"""A record that can't be used, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeadLetter:
    """A record that is not used: where it stands, the reason (counted), what happened, and how the record begins.

    `dropped` says that it was left out as it should be; otherwise it failed. `document_id` is empty where the record
    has none.
    """

    source: str
    line: int
    reason: str
    detail: str
    snippet: str = ""
    dropped: bool = False
    document_id: str = ""


def clean(text: str) -> str:
    """The text with lone surrogates replaced, which no coder takes."""
    return text.encode("utf-8", "replace").decode()
