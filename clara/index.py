"""INDEX: the two levels of retrieval over a MEMORY.

First level: FAISS over the keys, whose inner product is about the flattened cosine; it gives L candidates. Second level: the
exact flattened cosine of those over the mapped payload. FAISS ids are `row_id`s: every live row, and nothing else.
"""

import logging
import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clara import artefact
from clara.artefact import file_entry, make_directory, manifest_hash, read_manifest, up_to_date, write_manifest
from clara.codec import Floats
from clara.encode import KeyProjection, key_projection
from clara.errors import InputError
from clara.memory import KIND as MEMORY
from clara.memory import Ids, MemoryStore

KIND, FILE = "INDEX", "index.faiss"
RECALL_AT = 10

_FLAT_ROWS = 50_000  # up to here, scanning every key costs less than it would lose
_CODED_ROWS = 5_000_000  # from here on, keys in float16 are a burden in RAM
_ADD_ROWS = 65_536
_TRAINING_ROWS_PER_LIST = 64
_PAYLOAD_BYTES = 256 * 2**20  # second level: decoded payload held at once

_log = logging.getLogger(__name__)


# --- exact scores ----------------------------------------------------------------------------------------------------


def unit_rows(memory: Floats) -> Floats:
    """Flattened memories `[n, M·D]` of length one; a memory of zeros stays zeros and scores 0 with everything."""
    flat = memory.reshape(len(memory), -1)
    norms: Floats = np.sqrt(np.square(flat).sum(axis=1, keepdims=True))
    return np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0)


def best(scores: Floats, row_ids: Ids, k: int) -> NDArray[np.intp]:
    """Positions of the k best, by descending score, equal scores by ascending `row_id`."""
    return np.lexsort((row_ids, -scores))[:k]


def exact_search(store: MemoryStore, query: Floats, k: int) -> Ids:
    """The k best rows `[B, k]` of queries `[B, M, D]` over every row: reads the whole payload once, block by block."""
    unit = unit_rows(query)
    rows = np.empty((len(query), 0), np.int64)
    scores = np.empty((len(query), 0), np.float32)
    for block in _blocks(store):
        found = unit @ unit_rows(store.memory(block)).T
        rows = np.concatenate([rows, np.broadcast_to(block, found.shape)], axis=1)
        scores = np.concatenate([scores, found], axis=1)
        order = np.stack([best(s, r, k) for s, r in zip(scores, rows, strict=True)])
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    return rows


def _blocks(store: MemoryStore) -> Iterator[Ids]:
    size = max(1, _PAYLOAD_BYTES // (4 * store.num_memory_tokens * store.hidden_size))
    for _, rows in store.iter_shards():
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size]


# --- building --------------------------------------------------------------------------------------------------------


def resolve_factory(factory: str, num_rows: int) -> str:
    """The FAISS factory string; `auto` chooses by the number of rows."""
    if factory != "auto":
        return factory
    if num_rows <= _FLAT_ROWS:
        return "Flat"
    lists = 2 ** round(math.log2(4 * math.sqrt(num_rows)))
    return f"IVF{lists},SQfp16" if num_rows <= _CODED_ROWS else f"OPQ64,IVF{lists},PQ64"


def build_index(
    memory_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    factory: str = "auto",
    *,
    seed: int = 0,
    first_level: int = 200,
    num_queries: int = 64,
    noise: float = 0.5,
    recall_floor: float = 0.9,
    verify: bool = False,
) -> dict[str, Any]:
    """Build an INDEX over a MEMORY, shard by shard, unless this very one is there. Returns its manifest.

    Args:
        memory_dir: the MEMORY.
        output: directory of the INDEX.
        factory: FAISS factory string, or `auto`.
        seed: draws the training sample and the queries of the measurement.
        first_level: L of the measurement.
        num_queries: rows that, disturbed, are asked for to measure recall@10 against exact search, which reads the whole
            payload once; 0: no measurement.
        noise: length of the disturbance, in lengths of the memory.
        recall_floor: a lower recall is warned of.
        verify: read every byte of the MEMORY against its sha256 before.

    Raises:
        InputError: no finished MEMORY, a damaged one, one without rows, a factory string that FAISS refuses, or no place to write.
    """
    store = MemoryStore.open(memory_dir)
    if not len(store):
        raise InputError(f"{memory_dir}: has no live row, so there is nothing to index; build it from a corpus")
    resolved = resolve_factory(factory, len(store))
    recipe = {"memory": store.hash, "factory": resolved, "seed": seed, "measurement": [first_level, num_queries, noise]}
    if up_to_date(output, KIND, recipe):
        return read_manifest(output, KIND)
    make_directory(output)
    if verify:
        artefact.verify(memory_dir, MEMORY)
    index = _fill(_train(store, resolved, seed), store)
    _check_rows(index, store, str(output))
    partial = Path(output) / f".{FILE}.{os.getpid()}"
    faiss.write_index(index, str(partial))
    os.replace(partial, Path(output) / FILE)
    recall = _measure(MemoryIndex(store, index), seed=seed, first_level=first_level, num_queries=num_queries, noise=noise)
    if recall is not None and recall < recall_floor:
        _log.warning(
            "%s: recall@%d is %.3f with first_level %d, under %.2f: raise first_level, give the MEMORY larger keys, or choose another factory",
            output,
            RECALL_AT,
            recall,
            first_level,
            recall_floor,
        )
    measured = {"recall_at_10": recall, "first_level": first_level, "num_queries": num_queries, "noise": noise}
    return write_manifest(
        output,
        kind=KIND,
        files=[file_entry(output, FILE, len(store))],
        recipe=recipe,
        counts={"rows": len(store)},
        fingerprint=store.fingerprint,
        memory=store.hash,
        factory=resolved,
        measured=measured,
    )


def _train(store: MemoryStore, factory: str, seed: int) -> Any:
    """An empty FAISS index, trained on a seeded sample of keys where it needs training."""
    try:
        index = faiss.index_factory(store.key_size, factory, faiss.METRIC_INNER_PRODUCT)
        inverted = faiss.try_extract_index_ivf(index)
        if not index.is_trained:
            most = max(_FLAT_ROWS, _TRAINING_ROWS_PER_LIST * (inverted.nlist if inverted else 0))
            chosen = np.sort(np.random.default_rng(seed).choice(len(store), min(most, len(store)), replace=False))
            index.train(store.keys(store.row_ids[chosen]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"factory {factory!r} for {len(store)} keys of {store.key_size} numbers: FAISS says {reason!r}; choose another, or auto"
        ) from error
    if inverted:
        inverted.nprobe = max(8, inverted.nlist // 16)
    return index


def _fill(index: Any, store: MemoryStore) -> Any:
    wrapped = faiss.IndexIDMap(index)
    for _, rows in store.iter_shards():
        for begin in range(0, len(rows), _ADD_ROWS):
            part = rows[begin : begin + _ADD_ROWS]
            wrapped.add_with_ids(store.keys(part), part)
    return wrapped


def _check_rows(index: Any, store: MemoryStore, where: str) -> None:
    """Every live row is in the index, and nothing else.

    Raises:
        InputError: rows differ.
    """
    ids = np.sort(faiss.vector_to_array(index.id_map))
    if index.ntotal != len(ids) or not np.array_equal(ids, store.row_ids):
        extra, missing = len(np.setdiff1d(ids, store.row_ids)), len(np.setdiff1d(store.row_ids, ids))
        raise InputError(
            f"{where}: {len(ids)} rows, {extra} of them not in {store.directory}, {missing} of whose {len(store)} live rows are missing; build the index again"
        )


def _measure(index: "MemoryIndex", *, seed: int, first_level: int, num_queries: int, noise: float) -> float | None:
    """Recall@10 of both levels against exact search, of stored rows with Gaussian noise of `noise` times their length."""
    store = index.store
    if not num_queries:
        return None
    dice = np.random.default_rng(seed)
    rows = store.row_ids[np.sort(dice.choice(len(store), min(num_queries, len(store)), replace=False))]
    query = store.memory(rows)
    lengths = np.sqrt(np.square(query).sum(axis=(1, 2), keepdims=True))
    query = query + (noise * lengths / math.sqrt(query[0].size) * dice.standard_normal(query.shape)).astype(np.float32)
    k = min(RECALL_AT, len(store))
    found, _ = index.search(query, k, first_level=max(first_level, k))
    exact = exact_search(store, query, k)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, exact, strict=True)]))


# --- searching -------------------------------------------------------------------------------------------------------


class MemoryIndex:
    """An open INDEX with the MEMORY that it is for.

    Attributes:
        store: the MEMORY.
        hash: of the index's manifest; empty where it has just been built.
    """

    def __init__(self, store: MemoryStore, index: Any, hash: str = "") -> None:
        self.store = store
        self.hash = hash
        self._index = index
        fields = store.fingerprint_fields
        self._projection: KeyProjection = key_projection(fields.num_memory_tokens, fields.hidden_size, fields.key_size, fields.key_seed)

    @classmethod
    def open(cls, index_dir: str | os.PathLike[str], store: MemoryStore) -> "MemoryIndex":
        """Open an INDEX for a MEMORY.

        Raises:
            InputError: it is unfinished, damaged, or for another MEMORY.
        """
        manifest = read_manifest(index_dir, KIND)
        if manifest["memory"] != store.hash:
            raise InputError(
                f"{index_dir}: for MEMORY {manifest['memory']}, but {store.directory} is {store.hash}; "
                "give the MEMORY that it was built from, or build an index for this one with pipelines.build_index"
            )
        path = Path(index_dir) / FILE
        (entry,) = manifest["files"]
        size = path.stat().st_size if path.is_file() else -1
        if size != entry["bytes"]:
            raise InputError(f"{path}: {size} bytes (-1: missing), the manifest says {entry['bytes']}; build the index again")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise InputError(f"{path}: not readable as a FAISS index ({error}); build the index again") from error
        _check_rows(index, store, str(index_dir))
        return cls(store, index, manifest_hash(index_dir))

    def search(
        self, query: Floats | Tensor, k: int, first_level: int = 200, exclude: Sequence[Collection[int]] | None = None
    ) -> tuple[Ids, Floats]:
        """The k best rows of each query: L candidates by key, ranked by exact flattened cosine, equal ones by `row_id`.

        Args:
            query: `[B, M, D]`.
            k: rows wanted.
            first_level: L, at least k.
            exclude: for each query row ids that are left out; L counts what remains.

        Returns:
            Row ids `[B, k]` and scores `[B, k]`; -1 and -inf where there are fewer.

        Raises:
            InputError: the query has another shape than the MEMORY's, or L is under k.
        """
        values = query.detach().float().cpu().numpy() if isinstance(query, Tensor) else np.asarray(query, np.float32)
        shape = (self.store.num_memory_tokens, self.store.hidden_size)
        if values.ndim != 3 or values.shape[1:] != shape:
            raise InputError(
                f"query has shape {list(values.shape)}, expected [B, {shape[0]}, {shape[1]}] as {self.store.directory}; use the model that made it"
            )
        if not 1 <= k <= first_level:
            raise InputError(f"k is {k} and first_level {first_level}; expected 1 ≤ k ≤ first_level")
        barred = [np.fromiter(rows, np.int64) for rows in exclude] if exclude is not None else [np.empty(0, np.int64)] * len(values)
        rows = np.full((len(values), k), -1, np.int64)
        scores = np.full((len(values), k), -np.inf, np.float32)
        for begin, candidates in self._first_level(values, first_level, barred):
            # Questions share candidates: each payload row is read once for all of them.
            union = np.unique(np.concatenate(candidates))
            memory = unit_rows(self.store.memory(union))
            for number, own in enumerate(candidates, begin):
                # Scored by itself in the order of its ids, so that a question's scores don't depend on its batch.
                exact = memory[np.searchsorted(union, own)] @ unit_rows(values[number : number + 1])[0]
                order = best(exact, own, k)
                rows[number, : len(order)], scores[number, : len(order)] = own[order], exact[order]
        return rows, scores

    def _first_level(self, values: Floats, first_level: int, barred: Sequence[Ids]) -> Iterator[tuple[int, list[Ids]]]:
        """Candidates `[≤ L]`, ascending, of groups of queries small enough for their payload; with each group's first number."""
        row_bytes = 4 * self.store.num_memory_tokens * self.store.hidden_size
        group = max(1, _PAYLOAD_BYTES // (row_bytes * first_level))
        for begin in range(0, len(values), group):
            part = barred[begin : begin + group]
            wanted = min(first_level + max(len(rows) for rows in part), len(self.store))
            _, found = self._index.search(self._projection.keys(values[begin : begin + group]), wanted)
            kept = [ids[(ids >= 0) & ~np.isin(ids, rows)][:first_level] for ids, rows in zip(found, part, strict=True)]
            yield begin, [np.sort(ids) for ids in kept]
