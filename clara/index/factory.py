"""Factory strings: which kind of FAISS index suits a number of rows, and training it on a sample of keys."""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from clara.arrays import Floats, Ids
from clara.errors import InputError
from clara.index.gpu import quantizer_on_gpu
from clara.index.keys import IndexKeys

_FLAT_ROWS = 50_000  # up to here, scanning every key costs less than it would lose
_CODED_ROWS = 5_000_000  # from here on, keys in float16 are a burden
_READ_ROWS = 65_536
TRAINING_ROWS_PER_LIST = 50
_TRAINING_BYTES = 2 * 2**30  # of sampled keys in float32; lists are as many as they suffice for
_MOST_CODE_BYTES = 64
# Rotation and codebooks learn no more from more: FAISS's own defaults take hours on two cores.
_OPQ_ROWS, _OPQ_ITERATIONS, _PQ_ROWS_PER_CENTROID = 16_384, 10, 64

_log = logging.getLogger(__name__)


def resolve_factory(factory: str, num_rows: int, key_size: int = 256, flat: str = "Flat") -> str:
    """The FAISS factory string; `auto` chooses by the number of rows: flat, lists of float16, or lists of codes."""
    if factory != "auto":
        return factory
    if num_rows <= _FLAT_ROWS:
        return flat
    most = _TRAINING_BYTES // (4 * key_size * TRAINING_ROWS_PER_LIST)
    lists = 2 ** math.floor(math.log2(min(4 * math.sqrt(num_rows) * math.sqrt(2), most)))
    if num_rows <= _CODED_ROWS:
        return f"IVF{lists},SQfp16"
    code = max(size for size in range(1, _MOST_CODE_BYTES + 1) if key_size % size == 0)
    return f"OPQ{code},IVF{lists},PQ{code}"


@contextmanager
def refused_by_faiss(keys: IndexKeys, factory: str) -> Iterator[None]:
    """Report an error of FAISS in one line.

    Raises:
        InputError: instead of its RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition("Error: ")[2]
        raise InputError(
            f"factory {factory!r} for {len(keys)} keys of {keys.size} numbers: FAISS says {reason!r}; "
            "choose another, or auto"
        ) from error


def check_kind(keys: IndexKeys, factory: str, probes: int) -> None:
    """Refuse a kind that can't be built in parts with row ids, or more probes than the index has lists.

    Raises:
        InputError: the kind or the number of probes is refused, or FAISS does not know the factory string.
    """
    if unfit := [part for part in factory.split(",") if re.fullmatch(r"IDMap2?|NSG\d*", part)]:
        raise InputError(
            f"factory {factory!r}: {unfit[0]} can't be used, as rows get ids and are added piece by piece here; "
            "leave it out, or choose another"
        )
    if not probes:
        return
    inverted = faiss.try_extract_index_ivf(empty_index(keys, factory))
    if inverted is None or probes > inverted.nlist:
        there = (
            "has no inverted lists; expected 0"
            if inverted is None
            else f"has {inverted.nlist} inverted lists; expected no more, or 0"
        )
        raise InputError(f"probes {probes}: factory {factory!r} {there} to leave the number to the build")


def empty_index(keys: IndexKeys, factory: str) -> Any:
    """An index over these keys before it is trained.

    Raises:
        InputError: FAISS does not know the factory string (or `auto`).
    """
    with refused_by_faiss(keys, factory):
        return faiss.index_factory(
            keys.size, resolve_factory(factory, len(keys), keys.size, keys.flat), faiss.METRIC_INNER_PRODUCT
        )


def check_trainable(keys: IndexKeys, factory: str) -> None:
    """Refuse, without training anything, a factory string (or `auto`) that no index over these keys can be built by.

    Raises:
        InputError: as raised by `check_kind`, or it has more lists or centroids than there are rows to train them.
    """
    check_kind(keys, factory, 0)
    index = empty_index(keys, factory)
    found = faiss.try_extract_index_ivf(index)
    inverted: Any = faiss.downcast_index(found) if found else None
    lists = inverted.nlist if inverted else 0
    centroids = inverted.pq.ksub if isinstance(inverted, faiss.IndexIVFPQ) else 0
    if max(lists, centroids) > len(keys):
        raise InputError(
            f"factory {factory!r} for {len(keys)} keys of {keys.size} numbers: "
            f"{lists} lists and {centroids} centroids of codes need as many rows at least; choose another, or auto"
        )


def train(keys: IndexKeys, factory: str, *, seed: int, gpu: bool = False) -> Any:
    """An empty FAISS index, trained on a seeded sample of keys where it needs training.

    Raises:
        InputError: FAISS refuses the factory string for these keys.
    """
    with refused_by_faiss(keys, factory):
        index = empty_index(keys, factory)
        inverted = faiss.try_extract_index_ivf(index)
        if not index.is_trained:
            most = max(_FLAT_ROWS, TRAINING_ROWS_PER_LIST * (inverted.nlist if inverted else 0))
            chosen = np.sort(np.random.default_rng(seed).choice(len(keys), min(most, len(keys)), replace=False))
            _log.info("index: training %s on %d of %d keys", factory, len(chosen), len(keys))
            _bound_training(index)
            with quantizer_on_gpu(index, wanted=gpu):
                index.train(_sample(keys, keys.store.row_ids[chosen]))
    return index


def _sample(keys: IndexKeys, rows: Ids) -> Floats:
    out = np.empty((len(rows), keys.size), np.float32)
    for begin in range(0, len(rows), _READ_ROWS):
        out[begin : begin + _READ_ROWS] = keys.of_rows(rows[begin : begin + _READ_ROWS])
    return out


def _bound_training(index: Any) -> None:
    """Keep rotation and codebooks to a sample and a number of rounds that two cores can do."""
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        for number in range(chain.size()):
            transform = faiss.downcast_VectorTransform(chain.at(number))
            if isinstance(transform, faiss.OPQMatrix):
                transform.max_train_points, transform.niter, transform.niter_pq_0 = (
                    _OPQ_ROWS,
                    _OPQ_ITERATIONS,
                    _OPQ_ITERATIONS,
                )
    inverted = faiss.try_extract_index_ivf(index)
    if isinstance(inverted, faiss.IndexIVFPQ):
        inverted.pq.cp.max_points_per_centroid = _PQ_ROWS_PER_CENTROID
