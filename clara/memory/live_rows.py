"""Which rows of a MEMORY are live, with the position of each: of equal ids the newest shard's, without tombstones."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.errors import InputError


class LiveRows:
    """The live rows of shards, all in RAM: twelve bytes and an id each.

    Attributes:
        row_ids: int64 `[rows]`, ascending.
        shard_of: the shard of each row.
        position_of: its position in that shard.
    """

    def __init__(self, columns: Sequence[Ids], tombstones: Sequence[int], where: str) -> None:
        """Find the live rows of these shards.

        Args:
            columns: row ids of each shard, the newest last.
            tombstones: row ids that are gone.
            where: what they are of, for messages.
        """
        row_ids = np.concatenate([np.empty(0, np.int64), *columns])
        shard_of = np.repeat(np.arange(len(columns), dtype=np.int32), [len(c) for c in columns])
        position_of = np.concatenate([np.empty(0, np.int32), *(np.arange(len(c), dtype=np.int32) for c in columns)])
        # Newest first among equal ids, of which `unique` keeps the first.
        order = np.lexsort((-shard_of, row_ids))
        live, first = np.unique(row_ids[order], return_index=True)
        chosen = order[first]
        kept = ~np.isin(live, np.asarray(tombstones, np.int64))
        self.row_ids, self.shard_of, self.position_of = live[kept], shard_of[chosen][kept], position_of[chosen][kept]
        self._where, self._num_shards = where, len(columns)

    @property
    def rows_of_shards(self) -> NDArray[np.int64]:
        """Live rows in each shard `[shards]`."""
        return np.bincount(self.shard_of, minlength=self._num_shards)

    def by_every_shard(self) -> Iterator[Ids]:
        """Row ids of each shard in turn, ascending; none of a shard without live rows."""
        order, end = np.argsort(self.shard_of, kind="stable"), 0
        for size in self.rows_of_shards.tolist():
            begin, end = end, end + size
            yield self.row_ids[order[begin:end]]

    def positions(self, row_ids: Sequence[int] | Ids) -> NDArray[np.intp]:
        """Positions of rows in `row_ids`.

        Raises:
            InputError: a row is not there, or not live.
        """
        wanted = np.asarray(row_ids, np.int64)
        index = np.minimum(np.searchsorted(self.row_ids, wanted), max(len(self.row_ids) - 1, 0))
        missing = wanted[self.row_ids[index] != wanted] if len(self.row_ids) else wanted
        if len(missing):
            raise InputError(
                f"{self._where}: row_id {missing[0]} is not a live row of it ({len(missing)} such); use its own row_ids"
            )
        return index

    def by_shard(self, row_ids: Sequence[int] | Ids) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.int32]]]:
        """Shard, positions in the request, ascending, places in the shard; shards ascend.

        Raises:
            InputError: see `positions`.
        """
        index = self.positions(row_ids)
        order = np.argsort(self.shard_of[index], kind="stable")
        shards, begins = np.unique(self.shard_of[index[order]], return_index=True)
        for shard, where in zip(shards.tolist(), np.split(order, begins[1:]), strict=False):
            yield shard, where, self.position_of[index[where]]
