"""The words part of an INDEX: BM25 over title and text of all rows of a MEMORY, in bm25s' own format.

It is built in bounded memory, whatever the number of rows: the words of each row go to disk first, then the scores, in
blocks of rows. bm25s itself builds through lists of tokens in RAM. Files and scores are the same however the rows are
distributed over shards: positions are those of `MemoryStore.row_ids`, and the vocabulary is sorted.
"""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.data.records import input_text
from clara.errors import InputError
from clara.index import parts
from clara.index.rows import pieces_of
from clara.index.tokens import TOKENISER, words_of
from clara.memory.store import MemoryStore
from clara.storage.artefact import Artefact

if TYPE_CHECKING:
    import bm25s

NAME = "words"

_ROWS_AT_ONCE = 4096
_POSTINGS_AT_ONCE = 4 * 2**20  # a posting is a word of a row with its count there: about 100 bytes while it is scored


def empty_words() -> "bm25s.BM25":
    """An index without rows: Lucene's BM25, k1 = 1.5, b = 0.75."""
    return _bm25s().BM25(method="lucene")


@functools.cache
def _bm25s() -> ModuleType:
    """The package, imported when it is used: it imports SciPy, which commands that only plan need not wait for."""
    import bm25s

    # It sets its logger to DEBUG at import and would log every index that is built.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def no_words(where: object) -> InputError:
    """The error for texts of which none has a word."""
    return InputError(
        f"{where}: no text has a word (two letters or digits, not only English stop words), so BM25 has nothing to "
        "search; build the INDEX with --no-words, and set joint.from_bm25 and the like, and the weight of bm25 in "
        "model.fusion.weights, to 0"
    )


# --- the part of an INDEX --------------------------------------------------------------------------------------------


def make_words(
    store: MemoryStore, directory: Path, older: Artefact | None, on_progress: Callable[[int], None]
) -> dict[str, Any] | None:
    """Link or build the words part in a folder where an INDEX is being made, see `clara.index.parts.make`.

    Args:
        store: the MEMORY.
        directory: gets the folder `words` and work files.
        older: INDEX whose part is linked if it is of the same rows; None: none.
        on_progress: see `build_words`.

    Raises:
        InputError: no row has a word, or the older part is damaged.
    """
    wanted = {"tokeniser": TOKENISER, "row_ids": parts.rows_hash(store)}

    def build() -> dict[str, Any]:
        return {"vocabulary": build_words(store, directory / NAME, directory / "counts", on_progress)}

    return parts.make(directory, NAME, wanted, older, build)


def open_words(artefact: Artefact) -> "bm25s.BM25 | None":
    """The words part of an INDEX, mapped: processes of one machine share its pages.

    None: the INDEX has none, or one whose words are not those of `words_of`.

    Raises:
        InputError: a file is missing or damaged.
    """
    described = artefact.manifest.get(NAME) or {}
    if described.get("tokeniser") != TOKENISER:
        return None
    folder = parts.fetch(artefact, NAME)
    try:
        index: bm25s.BM25 = _bm25s().BM25.load(folder, mmap=True, show_progress=False)
        scores = index.scores
        sizes = (scores["num_docs"], len(scores["data"]), len(scores["indptr"]))
        expected = (artefact.manifest["counts"]["rows"], len(scores["indices"]), len(index.vocab_dict) + 1)
        if sizes != expected:
            raise ValueError(f"rows, postings and words are {sizes}, expected {expected}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: damaged ({error}); build the INDEX again, or copy it again") from error
    return index


# --- building --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    """Words of n rows as pass 1 leaves them; P postings, V words in the order in which they first appeared.

    Attributes:
        vocabulary: the words `[V]`.
        num_rows: rows with each word `[V]`.
        words: word of each posting, as its place in `vocabulary` `[P]`; the postings of a row are together.
        counts: how often it is in its row `[P]`.
        begins: first posting of each row `[n]`, rows in the order of `row_ids`.
        sizes: its number of postings `[n]`.
        lengths: its number of words, repeated ones repeatedly `[n]`.
    """

    vocabulary: list[str]
    num_rows: NDArray[np.int64]
    words: NDArray[np.int32]
    counts: NDArray[np.int32]
    begins: NDArray[np.int64]
    sizes: NDArray[np.int64]
    lengths: NDArray[np.int64]


def build_words(
    store: MemoryStore, folder: Path, scratch: Path, on_progress: Callable[[int], None] = lambda done: None
) -> int:
    """Write the words part of a MEMORY. Returns the size of its vocabulary.

    Args:
        store: the MEMORY.
        folder: for the part; its files are overwritten.
        scratch: a folder for work files, about 15 bytes for each word of the corpus; the caller removes it.
        on_progress: called with the number of rows whose words were just counted.

    Raises:
        InputError: no row has a word.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    counted = _count(store, scratch, on_progress)
    if not counted.vocabulary:
        raise no_words(store.name)
    order = sorted(range(len(counted.vocabulary)), key=counted.vocabulary.__getitem__)
    index = empty_words()
    index.scores = _score(index, counted, np.array(order), scratch)
    index.vocab_dict = {counted.vocabulary[word]: number for number, word in enumerate(order)}
    index.nonoccurrence_array = None
    index.save(folder, show_progress=False)
    return len(order)


def _count(store: MemoryStore, scratch: Path, on_progress: Callable[[int], None]) -> _Counted:
    """Pass 1, shard by shard: count the words of each row."""
    known: dict[str, int] = {}
    begins, sizes, lengths = (np.zeros(len(store), np.int64) for _ in range(3))
    num_rows, written = np.zeros(0, np.int64), 0
    paths = scratch / "words.bin", scratch / "counts.bin"
    with open(paths[0], "wb") as words_file, open(paths[1], "wb") as counts_file:
        for rows in pieces_of(store, _ROWS_AT_ONCE):
            positions = np.searchsorted(store.row_ids, rows)
            words, counts, sizes[positions], lengths[positions] = _count_rows(store, rows, known)
            words.tofile(words_file)
            counts.tofile(counts_file)
            begins[positions] = written + np.cumsum(sizes[positions]) - sizes[positions]
            written += len(words)
            num_rows = np.pad(num_rows, (0, len(known) - len(num_rows)))
            num_rows += np.bincount(words, minlength=len(known))
            on_progress(len(rows))
    mapped = [np.memmap(path, np.int32, "r") if written else np.zeros(0, np.int32) for path in paths]
    return _Counted(list(known), num_rows, mapped[0], mapped[1], begins, sizes, lengths)


def _count_rows(
    store: MemoryStore, rows: Ids, known: dict[str, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Postings of rows one after the other: words and counts; then each row's number of postings and of words."""
    tokens: list[int] = []
    lengths = np.zeros(len(rows), np.int64)
    for number, chunk in enumerate(store.records(rows)):
        words = words_of(input_text(chunk.title, chunk.text))
        lengths[number] = len(words)
        tokens += [known.setdefault(word, len(known)) for word in words]
    row_of_token = np.repeat(np.arange(len(rows)), lengths)
    pairs, counts = np.unique((row_of_token << 32) | np.array(tokens, np.int64), return_counts=True)
    sizes = np.bincount(pairs >> 32, minlength=len(rows))
    return (pairs & 0xFFFFFFFF).astype(np.int32), counts.astype(np.int32), sizes, lengths


def _score(index: "bm25s.BM25", counted: _Counted, order: NDArray[np.int64], scratch: Path) -> dict[str, Any]:
    """Pass 2, in blocks of rows: the score of each posting, as a sparse matrix by columns (`order[i]` is word i)."""
    num_rows, total = counted.num_rows[order], len(counted.words)
    number_of = np.empty(len(order), np.int64)
    number_of[order] = np.arange(len(order))
    idf = _idf(num_rows, len(counted.sizes))
    starts = np.concatenate([[0], np.cumsum(num_rows)])
    data = np.lib.format.open_memmap(scratch / "data.npy", "w+", np.float32, (total,))
    indices = np.lib.format.open_memmap(scratch / "indices.npy", "w+", np.int32, (total,))
    heads = starts[:-1].copy()  # where the next posting of each word goes
    # Lucene's BM25 without idf: count / (count + norm of the row). The order of operations is bm25s'.
    mean = counted.lengths.sum() / len(counted.lengths)
    norms = index.k1 * ((1 - index.b) + index.b * counted.lengths / mean)
    for begin, end in _blocks(counted.sizes):
        sizes = counted.sizes[begin:end]
        positions = np.repeat(counted.begins[begin:end] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        words = number_of[counted.words[positions]]
        by_word = np.argsort(words, kind="stable")  # stable: the rows of a word ascend
        words, rows = words[by_word], np.repeat(np.arange(begin, end), sizes)[by_word]
        counts = counted.counts[positions[by_word]].astype(np.float64)
        present, first, times = np.unique(words, return_index=True, return_counts=True)
        targets = np.repeat(heads[present] - first, times) + np.arange(len(words))
        data[targets] = idf[words] * (counts / (norms[rows] + counts))
        indices[targets] = rows
        heads[present] += times
    return {"data": data, "indices": indices, "indptr": starts, "num_docs": len(counted.sizes)}


def _blocks(sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First and last row (exclusive) of blocks of about `_POSTINGS_AT_ONCE` postings, at least one row each."""
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, np.arange(_POSTINGS_AT_ONCE, int(ends[-1]), _POSTINGS_AT_ONCE)) + 1
    return list(pairwise(sorted({0, *cuts.tolist(), len(sizes)})))


def _idf(num_rows: NDArray[np.int64], total: int) -> NDArray[np.float32]:
    """Lucene's inverse document frequency: ln(1 + (n − df + 0.5) / (df + 0.5)), rounded as bm25s does."""
    frequencies, positions = np.unique(num_rows, return_inverse=True)
    values = [math.log(1 + (total - df + 0.5) / (df + 0.5)) for df in frequencies.tolist()]
    return np.array(values, np.float32)[positions]
