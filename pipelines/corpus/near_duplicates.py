"""Near duplicates: MinHash signatures in banded buckets; the first similar document stays, on every runner.

The documents of a bucket are compared in the order of the corpus. A document is dropped if its estimated similarity
with a kept document of the bucket reaches the threshold; otherwise it is kept. This takes one shuffle and no connected
components: if a is similar to b and b to c, but a not to c, then c may be dropped although b was dropped, too. Bands
miss one pair in five whose similarity is just the threshold, and few pairs above it.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from clara.data.records import Document
from clara.data.scripts import MARKS, UNSPACED
from clara.errors import InputError
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.dead_letters import SNIPPET_CHARACTERS

if TYPE_CHECKING:
    from datasketch import MinHash

REASON = "near duplicate"
NUM_HASHES, _SEED, _SCHEME = 128, 1, "affine32"
_SHINGLE_WORDS = 5
_LARGEST_THRESHOLD = 0.95  # above it, 128 hashes do not discriminate
# Without spaces between words, each character counts as a word.
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}](?:[^\W{UNSPACED}]|[{MARKS}])*")

Origin = tuple[str, int, str]
"""Source, line and id of a document."""
AnyOrigin = TypeVar("AnyOrigin", Origin, tuple[int, int, int])
Signature = NDArray[np.uint32]


@dataclass(frozen=True)
class MinHashSettings:
    """Similarity that counts as duplicate: an estimated Jaccard of at least `threshold`, in bands of so many hashes."""

    threshold: float
    num_bands: int
    band_size: int


def make_min_hash_settings(threshold: float) -> MinHashSettings | None:
    """The settings for a threshold; None for 0, which is off.

    Raises:
        InputError: not between 0 and 0.95.
    """
    if not 0 <= threshold <= _LARGEST_THRESHOLD:
        raise InputError(
            f"--near-duplicates {threshold}: expected a similarity, 0 (off) to {_LARGEST_THRESHOLD}; "
            "of equal chunks only the first stays anyway"
        )
    if not threshold:
        return None
    from datasketch import MinHashLSH  # takes a second

    # Misses weigh more than false positives, which are compared anyway and only cost time.
    lsh = MinHashLSH(threshold=threshold, num_perm=NUM_HASHES, weights=(0.1, 0.9))
    return MinHashSettings(threshold, lsh.b, lsh.r)


def shingles(text: str) -> set[bytes]:
    """Shingles: each five lower-case words in a row; with fewer words all of them, without words all characters.

    In scripts without spaces between words each character is a word.
    """
    lower = text.lower()
    words = _WORD.findall(lower)
    if not words:
        return {" ".join(["", *lower.split()]).encode()}  # no text with words has this shingle
    spans = max(1, len(words) - _SHINGLE_WORDS + 1)
    return {" ".join(words[begin : begin + _SHINGLE_WORDS]).encode() for begin in range(spans)}


@functools.cache
def _blank() -> "MinHash":
    from datasketch import MinHash

    return MinHash(num_perm=NUM_HASHES, seed=_SEED, scheme=_SCHEME)


def signature(text: str) -> Signature:
    """The MinHash signature `[128]` of a text's shingles."""
    sketch = _blank().copy()
    sketch.update_batch(sorted(shingles(text)))
    return np.asarray(sketch.hashvalues, np.uint32)


def similarity(first: Signature, second: Signature) -> float:
    """Estimated Jaccard similarity: the share of equal hashes."""
    return float((first == second).mean())


def duplicates(bucket: Iterable[tuple[Origin, Signature]], threshold: float) -> Iterator[tuple[Origin, Origin]]:
    """(Dropped, the kept one that it is similar to) of a bucket in any order."""
    yield from duplicates_in_order(sorted(bucket, key=lambda entry: entry[0]), threshold)


def duplicates_in_order(
    bucket: Iterable[tuple[AnyOrigin, Signature]], threshold: float
) -> Iterator[tuple[AnyOrigin, AnyOrigin]]:
    """`duplicates` of a bucket in the order of the corpus; only kept documents are held in memory."""
    kept: list[tuple[AnyOrigin, Signature]] = []
    for origin, own in bucket:
        like = next((other for other, theirs in kept if similarity(own, theirs) >= threshold), None)
        if like is None:
            kept.append((origin, own))
        else:
            yield origin, like


def band_keys(own: Signature, min_hash: MinHashSettings) -> Iterator[bytes]:
    """Key of the signature's bucket for each band: two bytes, and four for each hash."""
    for band in range(min_hash.num_bands):
        yield band.to_bytes(2, "big") + own[band * min_hash.band_size : (band + 1) * min_hash.band_size].tobytes()


def dead_letter_for(document: Document, like: Origin) -> DeadLetter:
    """The dead letter of a near duplicate; names the document that it is similar to."""
    detail = f"of {like[0]}:{like[1]}"
    snippet = document.text[:SNIPPET_CHARACTERS]
    return DeadLetter(
        document.source, document.line, REASON, detail, snippet, dropped=True, document_id=document.id, kept=like[2]
    )
