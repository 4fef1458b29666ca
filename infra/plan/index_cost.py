"""An INDEX before it is built: its kind as the build chooses it, its bytes, and the work of its lists."""

import json
from dataclasses import dataclass
from pathlib import Path

from clara.config.tree import Config
from clara.errors import InputError
from infra.plan.machines import INDEX_RESULTS

_ID_BYTES = 8


@dataclass(frozen=True)
class IndexKind:
    """The kind of an INDEX.

    Attributes:
        factory: FAISS factory string.
        num_bytes: of keys, ids and lists; what a search maps or loads.
        operations: of finding the lists' centres and each row's list; 0 without lists.
    """

    factory: str
    num_bytes: float
    operations: float


def index_kind(rows: int, key_size: int, config: Config) -> IndexKind:
    """The INDEX over so many rows, as `clara.index.factory` resolves it.

    Raises:
        InputError: FAISS does not know the factory string, or the size of its rows is not a fixed one.
    """
    import faiss

    from clara.index.factory import TRAINING_ROWS_PER_LIST, resolve_factory

    flat = "Flat" if config.model.score.pooling == "flattened" else "SQfp16"
    factory = resolve_factory(config.retrieval.factory, rows, key_size, flat)
    try:
        empty = faiss.index_factory(key_size, factory, faiss.METRIC_INNER_PRODUCT)
        found = faiss.try_extract_index_ivf(empty)
        code = found.code_size if found else empty.sa_code_size()
    except RuntimeError as error:
        raise InputError(
            f"retrieval.factory {factory!r} for keys of {key_size} numbers: cannot be planned "
            f"({str(error).strip().splitlines()[-1]}); choose another, or auto"
        ) from error
    lists, rounds = (found.nlist, found.cp.niter) if found else (0, 0)
    trained = min(rows, TRAINING_ROWS_PER_LIST * lists)
    operations = 2.0 * lists * key_size * (rows + rounds * trained)
    return IndexKind(factory, float(rows * (code + _ID_BYTES) + 4 * lists * key_size), operations)


def list_seconds(kind: IndexKind, file: Path = INDEX_RESULTS) -> float:
    """Seconds of that work on the processor of the measured build of a million rows, `benchmarks.index`."""
    if not kind.operations:
        return 0.0
    measured = json.loads(file.read_text(encoding="utf-8"))
    one = index_kind(measured["rows"], _MEASURED_KEY, Config())
    seconds: float = measured["systems"]["ours"]["build_seconds"]
    return kind.operations * seconds / one.operations


_MEASURED_KEY = 256  # numbers of a key in benchmarks.index
