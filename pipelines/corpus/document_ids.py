"""Document ids shared by different texts: every text is kept; the job warns with a count and one example.

Only a short digest of each document's content is compared.
"""

import hashlib
import zlib
from collections.abc import Iterable

from clara.data.records import Document
from pipelines.corpus.spill import NUM_PARTITIONS, files_of, partition_of, read_lines, to_line

SEVERAL = "document ids of several texts"
EXAMPLE = "document id of several texts, the first"
FILES = "documents"
NUM_GROUPS = 512
"""Groups of spilled ids; those of a group are compared together."""

TextOrigin = tuple[str, int, str]
"""Source and line of a document, and a digest of its content."""
SharedId = tuple[tuple[str, int], str]
"""Source and line of the first text of an id that others share, and the warning's example: the id and two texts."""


def origin_of(document: Document) -> TextOrigin:
    """The origin of a document, with an eight-byte digest of its title and text."""
    digest = hashlib.blake2b(f"{document.title}\n{document.text}".encode(), digest_size=8)
    return document.source, document.line, digest.hexdigest()


def two_that_differ(found: Iterable[tuple[TextOrigin, ...]]) -> tuple[TextOrigin, ...]:
    """The first origin, and the first with other content if there is one; also combines partial results."""
    origins = sorted(origin for part in found for origin in part)
    others = [origin for origin in origins if origin[2] != origins[0][2]]
    return tuple([*origins[:1], *others[:1]])


def shared_ids(texts: Iterable[tuple[str, tuple[TextOrigin, ...]]]) -> list[SharedId]:
    """The shared ones among ids with the result of `two_that_differ`."""
    return [
        (pair[0][:2], f"{document_id!r} ({pair[0][0]}:{pair[0][1]} and {pair[1][0]}:{pair[1][1]})")
        for document_id, pair in texts
        if len(pair) == 2
    ]


def spilled(document: Document) -> tuple[int, bytes]:
    """Partition and record of a document for the local job, which spills them to `FILES`."""
    return partition_of(zlib.crc32(document.id.encode()), 0), to_line([document.id, *origin_of(document)])


def compare_ids(group: int, spill: str) -> tuple[int, SharedId | None]:
    """Number of shared ids in a group of spilled ones, and the first."""
    texts: dict[str, tuple[TextOrigin, ...]] = {}
    first, last = (NUM_PARTITIONS * edge // NUM_GROUPS for edge in (group, group + 1))
    for _, (document_id, *origin) in read_lines(files_of(spill, FILES), first, last):
        texts[document_id] = two_that_differ([texts.get(document_id, ()), (tuple(origin),)])
    shared = shared_ids(texts.items())
    return len(shared), min(shared, default=None)
