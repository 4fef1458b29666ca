"""The report of benchmarks/joint_step.py."""

from collections.abc import Mapping, Sequence
from typing import Any

VARIANTS = ("stored", "compressed", "published")
"""Where a step takes its candidates from, in the order of the table."""
_AIM = 5.0


def markdown(found: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "# Step time of joint training",
        "",
        f"`{about['command']}`",
        "",
        f"{about['processor']}, {about['torch_threads']} thread(s){', ' + about['gpu'] if about['gpu'] else ''}; "
        f"load average at the start "
        f"{about['load_average'][0]}. Median seconds of a step (on a CPU of processor time, "
        f"which other work changes little); "
        f"how many times as long as with stored memory, median [least, most] of the rounds.",
        "",
        "| model | dtype | document tokens | N | K | questions | stored | "
        "compressed in the step | as published (padded) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [f"{row['median_seconds']['stored']:.3f} s"]
        for name in VARIANTS[1:]:
            ratio = row["ratios"][name]
            cells.append(
                f"{row['median_seconds'][name]:.3f} s, **{ratio['median']:.1f}×** "
                f"[{ratio['min']:.1f}, {ratio['max']:.1f}]"
            )
        lines.append(
            f"| {row['model']} | {row['dtype']} | {row['document_tokens']} | "
            f"{row['candidates']} | {row['selected']} | {row['questions']} | " + " | ".join(cells) + " |"
        )
    lines += ["", f"Aim: {_AIM:g}× at 20 candidates.", ""]
    return "\n".join(lines)
