"""The figures of benchmarks/corpus_job.py, and its report."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clara.memory.batches import tight_batches

BATCH_TOKENS = 4096


def share_of_padding(lengths: Sequence[Sequence[int]], num_memory_tokens: int, around: int) -> float:
    """Of the tokens that shards of these lengths are computed with, `around` each text included."""
    real = padded = 0
    for shard in lengths:
        ordered = sorted(shard)
        for batch in tight_batches(ordered, BATCH_TOKENS, num_memory_tokens):
            real += sum(ordered[i] + around for i in batch)
            padded += (ordered[batch[-1]] + around) * len(batch)
    return 1 - real / padded


def least_cosine(memory: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of a chunk's flattened memory in both."""
    a, b = memory.reshape(len(memory), -1), other.reshape(len(other), -1)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def times_the_naive_way(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """How many times as long the naive way takes as each other way, by turn."""
    return {
        way: [slow / fast for fast, slow in zip(values, seconds["naive"], strict=True)]
        for way, values in seconds.items()
        if way != "naive"
    }


def markdown(result: dict[str, Any]) -> str:
    """The figures in Markdown."""
    rows = [
        "| way | tokens a second of one core | times the naive way, in processor time | in seconds | operations that "
        "it asks for, share of the products reached | least cosine of a memory | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, speed in result["tokens_a_processor_second"].items():
        used = statistics.median(result["utilisation"][way])
        if way == "naive":
            rows.append(f"| naive, in {result['naive_dtype']} | {speed:.0f} | 1 | 1 | {used:.2f} | | |")
            continue
        of_processor, of_clock = (
            _turns(result[name][way]) for name in ("times_the_naive_way_in_processor_time", "times_the_naive_way")
        )
        apart, near = result["largest_difference"][way], result["least_cosine"][way]
        rows.append(
            f"| ours, in {way} | {speed:.0f} | {of_processor} | {of_clock} | {used:.2f} | {near:.5f} | {apart:.1e} |"
        )
    padding = result["padding_share"]
    jobs = [
        f"The whole command in {dtype}, with start and reading: {job['seconds']:.0f} s, peak of all processes "
        f"{job['peak_pss_bytes'] / 2**20:.0f} MiB (PSS)."
        for dtype, job in result["whole_job"].items()
    ]
    return "\n".join(
        [
            "# Compressing documents",
            "",
            f"`{result['command']}`",
            "",
            f"{result['chunks']} chunks of {result['mean_tokens']:.0f} tokens on average; "
            f"{result['processor']}, {result['cores']} cores, load {result['load_average']}.",
            "",
            *rows,
            "",
            "Median [least, most] of the turns. The naive way asks for "
            f"{result['times_the_naive_way_in_operations']:.1f} times the operations; its padding is "
            f"{padding['naive']:.3f} of its tokens, ours {padding['ours']:.3f}. Products are the machine's own of "
            f"square matrices in {result['naive_dtype']}; a difference is a share of the largest number.",
            *jobs,
            "",
        ]
    )


def _turns(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
