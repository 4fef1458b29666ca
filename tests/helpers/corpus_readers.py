"""Reads a corpus file with every reader."""

from pathlib import Path

from clara.data.fields import Fields
from clara.data.records import Document
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.readers import read_unit
from pipelines.corpus.splits import find_units
from pipelines.corpus.whole import corpus_files, read_corpus
from tests.helpers.awkward import ROWS
from training.stages.documents import read_documents

EXPECTED = [(row["id"], row["title"], row["text"]) for row in ROWS]


def by_the_job(path: Path | str, fields: Fields = Fields(), file_format: str = "auto") -> list[Document | DeadLetter]:  # noqa: B008
    return [found for unit in find_units([str(path)], file_format, fields) for found in read_unit(unit, fields)]


def read(path: Path, fields: Fields = Fields()) -> list[tuple[str, str, str]]:  # noqa: B008
    """The documents of a file, which every reader reads alike."""
    job = by_the_job(path, fields)
    letters = [found for found in job if isinstance(found, DeadLetter)]
    assert letters == []
    documents = [(d.id, d.title, d.text) for d in job if isinstance(d, Document)]
    assert [(d.id, d.title, d.text) for d in read_corpus(corpus_files([str(path)], fields), fields)] == documents
    if fields == Fields():
        texts = {name: f"{title}\n{text}" if title else text for name, title, text in documents}
        assert read_documents(str(path), set(texts)) == texts
    return documents
