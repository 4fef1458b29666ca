"""Features of every row of a MEMORY for some questions, as a fit of the fused score reads them.

Shapes: Q questions, N rows of MEMORY, F features.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.config.model import FeatureName
from clara.progress import Progress
from clara.retrieval.ranker import Queries, Ranker

_ROWS_AT_ONCE = 4096


def all_features(
    rankers: Mapping[FeatureName, Ranker], queries: Queries, row_ids: Ids, scratch: Path
) -> NDArray[np.float32]:
    """Scores `[Q, N, F]` of all rows by each ranker, in a file that is mapped.

    Args:
        rankers: in the order of the features.
        queries: with vectors, if the memory is among the rankers.
        row_ids: of all rows, ascending.
        scratch: the file, Q · N · F · 4 bytes; the caller removes it.
    """
    shape = len(queries.texts), len(row_ids), len(rankers)
    found = np.lib.format.open_memmap(scratch, "w+", np.float32, shape)
    with Progress(shape[0] * shape[1] * shape[2], "features of all rows", " scores", unit_scale=True) as bar:
        for number, (name, ranker) in enumerate(rankers.items()):
            # The memory of a block of rows is read once for all questions; BM25 scores a question's rows all at once.
            size = _ROWS_AT_ONCE if name == "memory" else len(row_ids)
            for begin in range(0, len(row_ids), size):
                rows = row_ids[begin : begin + size].tolist()
                for question, scores in enumerate(ranker.score(queries, [rows] * shape[0])):
                    found[question, begin : begin + size, number] = scores
                bar.update(shape[0] * len(rows))
    return found
