"""Documents by id from the corpus that questions point into."""

from clara.data.corpus import check_file, format_of, read_rows, to_document
from clara.data.fields import FIELDS
from clara.data.input_files import expand
from clara.data.records import input_text
from clara.errors import InputError


def document_files(path: str) -> list[str]:
    """The files that a path or glob names, with the columns of tables checked.

    Raises:
        InputError: it names none, or one without the documents' columns.
    """
    files = expand([path], "corpus")
    for file in files:
        check_file(file, format_of(file), FIELDS)
    return files


def read_documents(path: str, wanted: set[str]) -> dict[str, str]:
    """What the compressor reads of each wanted document: its title and text.

    Args:
        path: a file that `read_rows` reads, or a glob, with `id` (else the content's hash is taken), `title`,
            `text`.
        wanted: document ids.

    Raises:
        InputError: the file or a wanted document is missing, or a line is not such a JSON object.
    """
    found = {}
    for file in document_files(path):
        for line, row in read_rows(file):
            document = to_document(row, file, line)
            if document and document.id in wanted:
                found[document.id] = input_text(document.title, document.text)
    missing = sorted(wanted - found.keys())
    if missing:
        raise InputError(
            f"{path}: {len(missing)} documents that questions name are not there (first: {missing[0]}); give the "
            "corpus they were made from"
        )
    return found
