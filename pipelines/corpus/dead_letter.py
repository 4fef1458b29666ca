"""A record that can't be used, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeadLetter:
    """A record that is not used: source and line, reason (counted), details, and the beginning of the record.

    `dropped` is True if the record was excluded on purpose, False if it failed. `document_id` is empty for a record
    without an id. `kept` is what is kept in place of a duplicate: the id of the equal chunk, or of the document that it
    is similar to.
    """

    source: str
    line: int
    reason: str
    detail: str
    snippet: str = ""
    dropped: bool = False
    document_id: str = ""
    kept: str = ""


def clean(text: str) -> str:
    """The text with lone surrogates replaced, because no coder accepts them."""
    return text.encode("utf-8", "replace").decode()
