"""What `benchmarks.plan_constants` found, as medians and as a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def seconds_found(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a size took, as medians of its repeats."""
    return {
        "compression": statistics.median(s["compression"] for s in samples),
        "joint step": statistics.median(s["step"] + s["read"] for s in samples),
        "index": statistics.median(s["keys"] + s["words"] for s in samples),
        "refresh": statistics.median(s["refresh"] for s in samples),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Constants, and predictions beside what was found."""
    lines = ["# Constants of `clara plan`", "", f"`{result['command']}`", ""]
    lines += [f"{result['processor']}, one thread, {result['dtype']}, {result['model']}. Processor seconds.", ""]
    lines += ["| constant | value | least | most |", "|---|---|---|---|"]
    for name, of in result["constants"].items():
        lines.append(f"| {name.replace('_', ' ')} | {of['value']:.3g} | {of['low']:.3g} | {of['high']:.3g} |")
    lines += ["", "The first size gives the constants; the others are predicted from them.", ""]
    lines += ["| size | part | predicted | found | ratio |", "|---|---|---|---|---|"]
    for row in result["sizes"]:
        size = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["size"].items())
        for part, seconds in row["predicted"].items():
            took = row["found"][part]
            lines.append(f"| {size} | {part} | {seconds:.3f} s | {took:.3f} s | {seconds / took:.2f} |")
    return "\n".join([*lines, ""])
