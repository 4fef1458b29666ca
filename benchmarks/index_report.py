"""Figures of benchmarks/index.py: recall of each system, and the report."""

from pathlib import Path
from typing import Any

import numpy as np


def recalls(folder: Path, output: Path, name: str) -> dict[str, Any]:
    """Recall@10 against exact cosine over the payload, and against exact search over the keys where flat was run."""
    exact, found = np.load(folder / "exact.npy"), np.load(output / "found.npy")
    rows = found if name == "ours" else np.where(found >= 0, np.load(folder / "key-rows.npy")[found], -1)
    np.save(output / "rows.npy", rows)
    by_key = [len(np.intersect1d(a, b[:10])) / 10 for a, b in zip(exact, rows, strict=False)]
    in_all = [len(np.intersect1d(a, b)) / 10 for a, b in zip(exact, rows, strict=False)]
    measured = {"recall_by_key": float(np.mean(by_key)), "recall_after_second_level": float(np.mean(in_all))}
    if name == "ours":
        both = np.load(output / "both.npy")
        measured["recall_measured_of_both_levels"] = float(
            np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(exact, both, strict=False)])
        )
    if (flat_rows := folder / "flat" / "rows.npy").is_file():
        measured["key_recall_against_flat"] = float(
            np.mean([len(np.intersect1d(a[:10], b[:10])) / 10 for a, b in zip(np.load(flat_rows), rows, strict=True)])
        )
    return measured


def table(results: dict[str, Any]) -> str:
    """Markdown of all figures."""
    lines = [
        f"# INDEX, {results['rows']:,} rows",
        "",
        "Keys of 256 float16 numbers, payload of 512 bytes a row (int8), "
        f"clustered ({results['rows'] // 500:,} centres). "
        f"{results['hardware']}; load average {results['load_average'][1]:g}. "
        f"{results['threads']} threads, L = {results['candidates']}, {results['num_exact']} queries for recall.",
        "",
        f"Command: `{results['command']}`",
        "",
        "| system | kind | build s | peak MiB (own) | index MiB | queries/s, one by one | "
        "in one batch | recall@10 by key | after second level | by key against flat |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results["systems"].items():
        if "queries_per_second" not in found:
            lines.append(f"| {name} | {found.get('kind', '')} | {found['build']['ended']} | | | | | | | |")
            continue
        build, speed = found["build"], list(found["queries_per_second"].values())
        size = f"{found['index_bytes'] / 2**20:,.0f}" if "index_bytes" in found else "in RAM"
        flat_recall = f"{found['key_recall_against_flat']:.3f}" if "key_recall_against_flat" in found else ""
        lines.append(
            f"| {name} | {found['kind']} | {found['build_seconds']:,.0f} | "
            f"{build['peak_bytes'] / 2**20:,.0f} ({build['peak_own_bytes'] / 2**20:,.0f}) | {size} | "
            f"{speed[0]:,.1f} | {speed[-1]:,.1f} | {found['recall_by_key']:.3f} | "
            f"{found['recall_after_second_level']:.3f} | {flat_recall} |"
        )
    ours = results["systems"].get("ours", {})
    if "both_levels_queries_per_second" in ours:
        speed = list(ours["both_levels_queries_per_second"].values())
        lines += [
            "",
            f"Ours with both levels: {speed[0]:,.1f} queries/s one by one, {speed[-1]:,.1f} in one batch, "
            f"recall@10 {ours['recall_measured_of_both_levels']:.3f}; "
            f"opened in {ours['open_seconds']:.1f} s; "
            f"peak of the searching process {ours['search']['peak_bytes'] / 2**20:,.0f} MiB, of which its own "
            f"{ours['search']['peak_own_bytes'] / 2**20:,.0f}.",
        ]
    lines += [
        "",
        "Peak: resident memory of the process, mapped files included; own: without them. "
        "Of flat and autofaiss one process builds and searches.",
        *results["notes"],
    ]
    return "\n".join(lines) + "\n"
