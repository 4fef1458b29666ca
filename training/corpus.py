"""Documents by id from the corpus file that questions point into."""

import json
from pathlib import Path

from clara.errors import InputError
from clara.records import document_id, input_text, normalise


def read_documents(path: str, wanted: set[str]) -> dict[str, str]:
    """What the compressor reads of each wanted document: its title and text.

    Args:
        path: JSONL with `id` (else the content's hash is taken), `title`, `text`.
        wanted: document ids.

    Raises:
        InputError: the file or a wanted document is missing, or a line is not such a JSON object.
    """
    if not Path(path).is_file():
        raise InputError(f"corpus {path!r}: no such file; give the JSONL that the questions were made from")
    found = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line.decode("utf-8"))
                title, text = normalise(row.get("title", "")), normalise(row["text"])
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise InputError(f"{path}:{number}: {line[:60]!r}: expected a JSON object with `text`, in UTF-8 ({error!r})") from error
            name = str(row.get("id") or document_id(title, text))
            if name in wanted:
                found[name] = input_text(title, text)
    missing = sorted(wanted - found.keys())
    if missing:
        raise InputError(
            f"{path}: {len(missing)} documents that questions name are not there (first: {missing[0]}); give the corpus they were made from"
        )
    return found
