"""Which rows of a step each rank takes."""

from collections.abc import Sequence

from clara.errors import InputError


def shard(rows: Sequence[int], rank: int, world: int, micro_batch: int) -> list[list[int]]:
    """A rank's share of a step's rows, cut into micro-batches: as many on every rank.

    Raises:
        InputError: the rows don't divide evenly.
    """
    if len(rows) % (world * micro_batch):
        raise InputError(
            f"{len(rows)} rows a step are not a multiple of ranks x micro_batch = {world} x {micro_batch}; change "
            "one of them"
        )
    own = rows[rank::world]
    return [list(own[i : i + micro_batch]) for i in range(0, len(own), micro_batch)]
