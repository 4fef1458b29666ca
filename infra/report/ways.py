"""Ways to answer a question: what finds the rows, and what reads them. Named as in an EVALUATION."""

from collections.abc import Mapping
from dataclasses import dataclass

SYSTEM, BM25, DENSE = "system", "bm25", "dense"
MEMORY, TEXT = "memory", "text"


@dataclass(frozen=True)
class Way:
    """A finder (`SYSTEM`, `BM25`, `DENSE`), a reader (`MEMORY`: the generator, `TEXT`: the plain LM), and a title."""

    finder: str
    reader: str
    title: str


_WAYS = {
    SYSTEM: Way(SYSTEM, MEMORY, "this system"),
    f"{BM25}/{SYSTEM}": Way(BM25, MEMORY, "memory, found by BM25"),
    f"{DENSE}/{SYSTEM}": Way(DENSE, MEMORY, "memory, found by dense vectors"),
    f"{TEXT}/{BM25}": Way(BM25, TEXT, "standard RAG, BM25"),
    f"{TEXT}/{DENSE}": Way(DENSE, TEXT, "standard RAG, dense vectors"),
    f"{TEXT}/{SYSTEM}": Way(SYSTEM, TEXT, "text, found by this system"),
}


def ways_of(*, dense: bool) -> Mapping[str, Way]:
    """All ways by their labels, this system first; those with dense vectors only where they are measured."""
    return {label: way for label, way in _WAYS.items() if dense or way.finder != DENSE}
