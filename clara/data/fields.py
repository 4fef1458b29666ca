"""Names of the fields of a corpus' records."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from clara.config.jobs import Records

_RECORDS = Records()


@dataclass(frozen=True)
class Fields:
    """Names of a record's fields."""

    id: str = _RECORDS.id_field
    title: str = _RECORDS.title_field
    text: str = _RECORDS.text_field
    others: ClassVar[Mapping[str, tuple[str, ...]]] = {
        _RECORDS.id_field: ("_id",),
        _RECORDS.text_field: ("contents",),
    }
    """Names that mean a missing one."""

    def of(self, names: Container[str]) -> "Fields":
        """The fields of a row with these names.

        Where the default is missing, the id is BEIR's `_id`, and the text FlashRAG's `contents`.
        """
        others = {
            role: other
            for role, name in (("id", self.id), ("text", self.text))
            if name not in names and (other := next((o for o in self.others.get(name, ()) if o in names), ""))
        }
        return replace(self, **others) if others else self


FIELDS = Fields()
"""The field names that are read by default."""


@dataclass(frozen=True)
class QuestionFields(Fields):
    """Names by which a file is known as one of questions."""

    text: str = "question"
    others: ClassVar[Mapping[str, tuple[str, ...]]] = {"question": ("Question", "query", "text")}
