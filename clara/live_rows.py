"""Which rows of a MEMORY are live, and where each lies: of equal ids the newest shard's, without tombstones."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clara.errors import InputError

Ids = NDArray[np.int64]


class LiveRows:
    """The live rows of shards, all in RAM: twelve bytes and an id each.

    Attributes:
        row_ids: int64 `[rows]`, ascending.
        shard_of: the shard of each row.
        place_of: its place in that shard.
    """

    def __init__(self, columns: Sequence[Ids], tombstones: Sequence[int], where: str) -> None:
        """Sort them out.

        Args:
            columns: row ids of each shard, the newest last.
            tombstones: row ids that are gone.
            where: what they are of, for messages.
        """
        row_ids = np.concatenate([np.empty(0, np.int64), *columns])
        shard_of = np.repeat(np.arange(len(columns), dtype=np.int32), [len(c) for c in columns])
        place_of = np.concatenate([np.empty(0, np.int32), *(np.arange(len(c), dtype=np.int32) for c in columns)])
        # Newest first among equal ids, of which `unique` keeps the first.
        order = np.lexsort((-shard_of, row_ids))
        live, first = np.unique(row_ids[order], return_index=True)
        chosen = order[first]
        kept = ~np.isin(live, np.asarray(tombstones, np.int64))
        self.row_ids, self.shard_of, self.place_of = live[kept], shard_of[chosen][kept], place_of[chosen][kept]
        self._where = where

    def places(self, row_ids: Sequence[int] | Ids) -> NDArray[np.intp]:
        """Positions of rows in `row_ids`.

        Raises:
            InputError: a row is not there, or not live.
        """
        wanted = np.asarray(row_ids, np.int64)
        index = np.minimum(np.searchsorted(self.row_ids, wanted), max(len(self.row_ids) - 1, 0))
        missing = wanted[self.row_ids[index] != wanted] if len(self.row_ids) else wanted
        if len(missing):
            raise InputError(f"{self._where}: row_id {missing[0]} is not a live row of it ({len(missing)} such); use its own row_ids")
        return index

    def by_shard(self, row_ids: Sequence[int] | Ids) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.int32]]]:
        """Shard, positions in the request, places in the shard.

        Raises:
            InputError: as of `places`.
        """
        index = self.places(row_ids)
        shards = self.shard_of[index]
        for shard in np.unique(shards).tolist():
            where = np.flatnonzero(shards == shard)
            yield shard, where, self.place_of[index[where]]
