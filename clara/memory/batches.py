"""Compressing batches, planned from the lengths of the chunks alone."""

from collections.abc import Iterator, Sequence

import numpy as np

_BATCHES_A_START = 128  # starting a batch costs 1/128 of computing a full one


def plan_batches(lengths: Sequence[int], batch_tokens: int, extra_tokens: int = 0) -> Iterator[range]:
    """Ranges over ascending lengths of padded size (longest + extra) · rows ≤ `batch_tokens`, or of one row."""
    begin = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (lengths[end] + extra_tokens) * (end + 1 - begin) > batch_tokens:
            yield range(begin, end)
            begin = end


def tight_batches(lengths: Sequence[int], batch_tokens: int, extra_tokens: int = 0) -> list[range]:
    """Ranges over ascending lengths within `batch_tokens`, like `plan_batches`, chosen so that the least is computed.

    A batch costs its padded tokens and, for what it costs to start one, `batch_tokens` / 128 of them; the sum over all
    batches is the least there is. So a batch ends where the lengths jump, and is smaller where they are spread.
    """
    start_tokens = max(1, batch_tokens // _BATCHES_A_START)
    least = np.zeros(len(lengths) + 1, np.int64)  # tokens of the best batches over the first n rows
    begin_of = np.zeros(len(lengths) + 1, np.int64)
    positions = np.arange(len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        width = lengths[end - 1] + extra_tokens
        first = end - max(1, min(end, batch_tokens // max(1, width)))
        costs = least[first:end] + width * (end - positions[first:end])
        best = int(costs.argmin())
        least[end], begin_of[end] = costs[best] + start_tokens, first + best
    batches = []
    end = len(lengths)
    while end:
        batches.append(range(int(begin_of[end]), end))
        end = int(begin_of[end])
    return batches[::-1]
