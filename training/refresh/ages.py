"""How old each row of MEMORY is: which snapshot made it, and how many updates of the compressor it lacks."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.errors import InputError
from clara.memory.store import MemoryStore


def shard_steps(store: MemoryStore, steps: Mapping[str, int]) -> NDArray[np.int64]:
    """Updates after which the compressor was that made each shard of a store, overlays after base shards.

    Raises:
        InputError: a shard's fingerprint is not among `steps`.
    """
    unknown = sorted({made.hash for made in store.shard_fingerprints} - steps.keys())
    if unknown:
        raise InputError(
            f"{store.directory}: holds memory of a compressor that is no version of this run ({unknown[0][:16]}…)"
        )
    return np.array([steps[made.hash] for made in store.shard_fingerprints], np.int64)


def steps_of_rows(store: MemoryStore, steps: Mapping[str, int]) -> NDArray[np.int64]:
    """The same for each row of a store, in the order of its `row_ids`."""
    return shard_steps(store, steps)[store.shards_of(store.row_ids)]


class Ages:
    """Ages of the rows of one open version.

    Attributes:
        oldest_step: updates after which the oldest row's snapshot was taken.
    """

    def __init__(self, store: MemoryStore, steps: Mapping[str, int], compressor_updates: int) -> None:
        """Read which version each row is from.

        Args:
            store: the version.
            steps: by fingerprint, the updates after which the snapshot of each of the run's versions was taken.
            compressor_updates: in which the compressor trains, the first ones of the run.

        Raises:
            InputError: see `shard_steps`.
        """
        self._store, self._updates = store, compressor_updates
        self._shard_steps = shard_steps(store, steps)
        self._rows = store.live.rows_of_shards
        live = self._shard_steps[self._rows > 0]
        self.oldest_step = int(live.min()) if len(live) else 0

    def lag(self, rows: Sequence[int] | Ids, step: int) -> NDArray[np.int64]:
        """Updates of the compressor that the stored memory of each row lacks in a step (0-based)."""
        return self._lacking(self._shard_steps[self._store.shards_of(rows)], step)

    def mean(self, step: int) -> float:
        """Mean of `lag` over all rows."""
        return float(self._lacking(self._shard_steps, step) @ self._rows / max(1, self._rows.sum()))

    def oldest(self, step: int) -> int:
        """The largest `lag` of all rows."""
        return max(0, min(step, self._updates) - self.oldest_step)

    def _lacking(self, made_after: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        return np.maximum(0, min(step, self._updates) - made_after)
