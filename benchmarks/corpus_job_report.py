"""The report of benchmarks/corpus_job.py."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def times_the_naive_way(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """How many times as long the naive way takes as each other way, by turn."""
    return {
        way: [slow / fast for fast, slow in zip(values, seconds["naive"], strict=True)]
        for way, values in seconds.items()
        if way != "naive"
    }


def markdown(result: dict[str, Any]) -> str:
    """The figures as a page."""
    rows = [
        "| way | tokens a second of one core | times the naive way, in processor time | in seconds | operations that "
        "it asks for, share of the products reached | largest difference of memory |",
        "|---|---|---|---|---|---|",
    ]
    for way, speed in result["tokens_a_processor_second"].items():
        used = statistics.median(result["utilisation"][way])
        if way == "naive":
            rows.append(f"| naive, in {result['naive_dtype']} | {speed:.0f} | 1 | 1 | {used:.2f} | |")
            continue
        of_processor, of_clock = (
            _turns(result[name][way]) for name in ("times_the_naive_way_in_processor_time", "times_the_naive_way")
        )
        apart = result["largest_difference"][way]
        rows.append(f"| ours, in {way} | {speed:.0f} | {of_processor} | {of_clock} | {used:.2f} | {apart:.1e} |")
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
