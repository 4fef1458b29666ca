"""Seconds of an answer by each way, side by side; tokens that it reads; bytes that each way needs."""

import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from clara.data.questions import Question
from clara.index.dense import NAME as DENSE_PART
from clara.index.dense_model import Encoder
from clara.index.parts import files_of
from clara.index.words import NAME as WORDS_PART
from clara.memory.shards import RECORDS, TENSORS
from clara.memory.store import MemoryStore
from clara.progress import Progress
from clara.retrieval.bm25 import Bm25
from clara.retrieval.dense import DenseRanker
from clara.retrieval.ranker import Queries, Ranker
from clara.retrieval.retriever import Retriever
from clara.storage.tables import read_table
from infra.report.ways import BM25, DENSE, MEMORY, SYSTEM, Way
from training.evaluation.readers import MemoryReader, Reader, Reading, TextReader

MEMORY_VECTORS, MEMORY_RECORDS, RAW_TEXT = "MEMORY, vectors", "MEMORY, records (compressed)", "raw text (UTF-8)"
INDEX_VECTORS, INDEX_WORDS, INDEX_DENSE = "INDEX, vectors", "INDEX, words", "INDEX, dense vectors"
_P95 = 0.95


@dataclass(frozen=True)
class Timed:
    """One question: seconds of each finder, and of each way (finding, reading and writing); tokens each way reads."""

    search: Mapping[str, float]
    answer: Mapping[str, float]
    tokens: Mapping[str, int]


def rankers_of(retriever: Retriever, finders: Collection[str], encoder: Encoder | None) -> dict[str, Ranker]:
    """What finds rows, by name.

    Raises:
        InputError: see `Bm25.open` and `DenseRanker.of_index_or_memory`.
    """
    index = None if retriever.index is None else retriever.index.artefact
    rankers: dict[str, Ranker] = {SYSTEM: retriever.ranker}
    if BM25 in finders:
        rankers[BM25] = Bm25.open(index, retriever.store)
    if DENSE in finders:
        assert encoder is not None  # the command asks for one with the baseline
        rankers[DENSE] = DenseRanker.of_index_or_memory(index, retriever.store, encoder)
    return rankers


class Clock:
    """Answers single questions by every way and keeps the time."""

    def __init__(
        self, retriever: Retriever, rankers: Mapping[str, Ranker], ways: Mapping[str, Way], k: int, max_new_tokens: int
    ) -> None:
        """Time the ways of an open system.

        Args:
            retriever: the system.
            rankers: by name of the finder.
            ways: to be timed, by label.
            k: rows that are read.
            max_new_tokens: longest answer.
        """
        self._retriever, self._rankers, self._ways = retriever, rankers, ways
        self._k, self._longest = k, max_new_tokens

    def all(self, questions: Sequence[Question]) -> list[Timed]:
        """Time every question, after one that is not counted. The ways take turns in who is first."""
        with Progress(len(questions), "seconds of an answer", " questions") as bar:
            self._one(questions[0], 0)
            found = []
            for number, question in enumerate(questions):
                found.append(self._one(question, number))
                bar.update(1)
        return found

    def _one(self, question: Question, turn: int) -> Timed:
        rows: dict[str, tuple[int, ...]] = {}
        search, answer, tokens = {}, {}, {}
        # A finder is asked once for each question: an embedding model remembers the question that it saw last.
        for finder in _turned([*self._rankers], turn):
            began = time.perf_counter()
            rows[finder] = self._find(finder, question)
            search[finder] = time.perf_counter() - began
        for label in _turned([*self._ways], turn):
            way = self._ways[label]
            reading = Reading(question.question, question.answers[0], rows[way.finder])
            reader = self._reader(way)
            began = time.perf_counter()
            reader.answers([reading], self._longest)
            answer[label] = search[way.finder] + time.perf_counter() - began
            tokens[label] = reader.num_tokens(reading, reader.prompt(reading, None))
        return Timed(search, answer, tokens)

    def _find(self, finder: str, question: Question) -> tuple[int, ...]:
        vectors = None
        if finder == SYSTEM and self._retriever.model.settings.fusion.a:
            vectors = self._retriever.queries([question.question])
        queries = Queries.of([question], self._retriever.store, vectors)
        return tuple(self._rankers[finder].rank(queries, self._k)[0])

    def _reader(self, way: Way) -> Reader:
        """A reader that has read nothing yet: one remembers its answers."""
        return MemoryReader(self._retriever) if way.reader == MEMORY else TextReader(self._retriever)


def _turned(names: Sequence[str], turn: int) -> list[str]:
    begin = turn % len(names)
    return [*names[begin:], *names[:begin]]


def median_and_p95(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"median_seconds": statistics.median(seconds), "p95_seconds": float(np.quantile(seconds, _P95))}


def raw_text_bytes(store: MemoryStore) -> int:
    """Bytes of titles and texts of all live rows, in UTF-8."""
    total = 0
    for shard, _, positions in store.live.by_shard(store.row_ids):
        path = store.artefact.file(f"{store.shard_names[shard]}/{RECORDS}")
        table = read_table(path, ["title", "text"]).take(positions)
        total += sum(pc.sum(pc.binary_length(table[name])).as_py() or 0 for name in table.column_names)
    return total


def sizes(retriever: Retriever, rankers: Mapping[str, Ranker]) -> dict[str, int]:
    """Bytes of the raw text and of each part of MEMORY and INDEX; of a part that is not stored, those it takes in RAM.

    Args:
        retriever: the system.
        rankers: see `rankers_of`; parts that none of them searches are left out.
    """
    memory = retriever.store.manifest["files"]
    index = None if retriever.index is None else retriever.index.artefact
    found = {
        RAW_TEXT: raw_text_bytes(retriever.store),
        MEMORY_VECTORS: sum(f["bytes"] for f in memory if f["path"].endswith(TENSORS)),
        MEMORY_RECORDS: sum(f["bytes"] for f in memory if f["path"].endswith(RECORDS)),
    }
    parts = {INDEX_WORDS: (WORDS_PART, rankers.get(BM25)), INDEX_DENSE: (DENSE_PART, rankers.get(DENSE))}
    for name, (part, ranker) in parts.items():
        stored = 0 if index is None else sum(f["bytes"] for f in files_of(index, part))
        in_ram = ranker.num_bytes if isinstance(ranker, Bm25 | DenseRanker) else 0
        if size := stored or in_ram:
            found[name] = size
    if index is not None:
        beside = tuple(f"{part}/" for part, _ in parts.values())
        every = index.manifest["files"]
        found[INDEX_VECTORS] = sum(f["bytes"] for f in every if not f["path"].startswith(beside))
    return found


def parts_of(way: Way, retriever: Retriever) -> set[str]:
    """Names of the parts that a way needs, see `sizes`."""
    fusion = retriever.model.settings.fusion
    needed = {MEMORY_VECTORS if way.reader == MEMORY else RAW_TEXT}
    finders = {way.finder, *(fusion.features if way.finder == SYSTEM else ())}
    if way.finder == SYSTEM and fusion.a:
        needed |= {MEMORY_VECTORS, INDEX_VECTORS}
    return needed | {part for name, part in ((BM25, INDEX_WORDS), (DENSE, INDEX_DENSE)) if name in finders}
