"""The report of benchmarks/corpus_job.py."""

import statistics
from typing import Any


def markdown(result: dict[str, Any]) -> str:
    """The figures as a page."""
    rows = ["| | ours | naive |", "|---|---|---|"]
    for title, key, digits in (
        ("chunks a second", "documents_a_second", 2),
        ("tokens a second", "tokens_a_second", 0),
        ("padding", "padding_share", 3),
    ):
        rows.append(f"| {title} | {result[key]['ours']:.{digits}f} | {result[key]['naive']:.{digits}f} |")
    used = {way: statistics.median(values) for way, values in result["utilisation"].items()}
    rows.append(
        f"| operations that it asks for, share of what the machine's matrix products reached "
        f"| {used['ours']:.2f} | {used['naive']:.2f} |"
    )
    ratios, job = result["times_the_naive_way"], result["whole_job"]
    of_processor = result["times_the_naive_way_in_processor_time"]
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
            f"Ours is {statistics.median(ratios):.1f} times as fast "
            f"(turns: {', '.join(f'{r:.1f}' for r in ratios)}), and takes "
            f"{statistics.median(of_processor):.1f} times less processor time "
            f"(turns: {', '.join(f'{r:.1f}' for r in of_processor)}). "
            f"The naive way asks for {result['times_the_naive_way_in_operations']:.1f} times the operations. "
            f"The memories differ by at most {result['largest_difference']:.1e} of the largest number.",
            f"The whole command, with start and reading: {job['seconds']:.0f} s, "
            f"peak of all processes {job['peak_pss_bytes'] / 2**20:.0f} MiB (PSS).",
            "",
        ]
    )
