"""What MEMORY knows of the documents that it does not hold: which rows represent duplicates."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from clara.data.records import row_id
from clara.memory.copies import COPIES, Copy, copies_bytes
from clara.storage.folders import folder
from clara.storage.manifest import write_file
from clara.storage.paths import Name
from pipelines.corpus.exact_duplicates import REASON as DUPLICATE
from pipelines.corpus.near_duplicates import REASON as NEAR_DUPLICATE


def write_copies(
    output: Name, letter_files: Sequence[Mapping[str, Any]], reasons: Mapping[tuple[bool, str], int]
) -> list[dict[str, Any]]:
    """Write `COPIES` from the dead letters of a job. Returns its manifest entry; nothing where there are no duplicates.

    Args:
        output: the MEMORY.
        letter_files: manifest entries of the dead letters, which are written.
        reasons: number of dead letters by (dropped, reason).
    """
    if not any(count and reason in (DUPLICATE, NEAR_DUPLICATE) for (_, reason), count in reasons.items()):
        return []
    data, count = copies_bytes(copy for entry in letter_files for copy in _copies(output, entry["path"]))
    return [write_file(output, COPIES, data, count)]


def _copies(output: Name, name: str) -> Iterator[Copy]:
    for line in (folder(output).read(name) or b"").splitlines():
        letter = orjson.loads(line)
        if letter["reason"] == DUPLICATE:
            yield letter["document_id"], row_id(letter["kept"]), None
        elif letter["reason"] == NEAR_DUPLICATE:
            yield letter["document_id"], None, letter["kept"]
