"""Names of the fields of a corpus' records."""

from collections.abc import Container
from dataclasses import dataclass, replace

from clara.config.jobs import Records

_RECORDS = Records()


@dataclass(frozen=True)
class Fields:
    """Names of a record's fields."""

    id: str = _RECORDS.id_field
    title: str = _RECORDS.title_field
    text: str = _RECORDS.text_field

    def of(self, names: Container[str]) -> "Fields":
        """The fields of a row with these names.

        Where the default is missing, the id is BEIR's `_id`, and the text FlashRAG's `contents`.
        """
        found = self
        if self.id == FIELDS.id and self.id not in names and "_id" in names:
            found = replace(found, id="_id")
        if self.text == FIELDS.text and self.text not in names and "contents" in names:
            found = replace(found, text="contents")
        return found


FIELDS = Fields()
"""The field names that are read by default."""
