"""A filter of a search: the documents and sources that passages may come from."""

from dataclasses import dataclass

from clara.errors import InputError
from clara.memory.store import MemoryStore


@dataclass(frozen=True)
class Filter:
    """Passages of these documents, and from these sources; None: of every one.

    Attributes:
        documents: document ids.
        sources: input files of the corpus, as MEMORY names them.
    """

    documents: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.documents is None and self.sources is None

    def rows(self, store: MemoryStore) -> list[int]:
        """The row ids that pass, ascending; perhaps none, where no document is from such a source.

        Raises:
            InputError: the MEMORY has no such document or source, or none is named.
        """
        passed: set[int] | None = None
        for kind, names, rows_of in (
            ("document", self.documents, store.rows_of),
            ("source", self.sources, store.rows_of_source),
        ):
            if names is None:
                continue
            if not names:
                raise InputError(f"filter: the list of {kind}s is empty; name some, or leave it out")
            rows: set[int] = set()
            for name in names:
                if not (own := rows_of(name)):
                    raise InputError(f"filter: the MEMORY has no row of {kind} {name!r}; correct the name")
                rows.update(own)
            passed = rows if passed is None else passed & rows
        return store.row_ids.tolist() if passed is None else sorted(passed)
