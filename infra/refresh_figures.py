"""Tables and curves of `infra.refresh_policies`: policies at equal steps and at equal wall time, and what each of them costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Metrics = Mapping[int, Mapping[str, float]]
_FRESH, _STORED = "held_out_fresh_pool_recall_at_", "held_out_pool_recall_at_"


def evaluations(metrics: Metrics) -> list[tuple[int, Mapping[str, float]]]:
    """The steps at which held-out questions were looked at, with their figures."""
    return [(step, values) for step, values in metrics.items() if "held_out_answer_nats" in values]


def outcome(step: int, values: Mapping[str, float]) -> dict[str, float | None]:
    """Recall@1 and @5 and nats per answer token, by fresh memory (what a whole encoding then would give) and by MEMORY as it is stored.

    Where pools are searched for instead of published, there are figures by stored memory only.
    """
    searched = "held_out_recall_at_"
    found: dict[str, float | None] = {"step": step, "seconds": values["seconds"]}
    for depth in (1, 5):
        found[f"fresh_recall_at_{depth}"] = values.get(f"{_FRESH}{depth}")
        found[f"stored_recall_at_{depth}"] = values.get(f"{_STORED}{depth}", values.get(f"{searched}{depth}"))
    found["fresh_answer_nats"] = values.get("held_out_fresh_answer_nats")
    found["stored_answer_nats"] = values["held_out_answer_nats"]
    return found


def compare(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each policy's outcome after its last step, and at the wall time in which the quickest run had finished; its costs and staleness."""
    limit = min(max(values["seconds"] for values in run["metrics"].values()) for run in runs.values())
    found = {}
    for policy, run in runs.items():
        metrics, report = run["metrics"], run["report"]
        looks = evaluations(metrics)
        in_time = [look for look in looks if look[1]["seconds"] <= limit]
        canary = [values for values in metrics.values() if "canary_cosine" in values]
        found[policy] = {
            "steps": len(metrics),
            "seconds": max(values["seconds"] for values in metrics.values()),
            "questions_per_second": report["questions_per_second"],
            "at_equal_steps": outcome(*looks[-1]) if looks else None,
            "at_equal_time": outcome(*in_time[-1]) if in_time else None,
            "equal_time_seconds": limit,
            "blocked_seconds": report["blocked_seconds"],
            "blocked_share": report["blocked_share"],
            "rerank_seconds": report["rerank_seconds"],
            "versions_used": len(report["versions_by_step"]),
            "mean_memory_lag_steps": _mean(metrics, "memory_lag_steps"),
            "mean_pool_lag_steps": _mean(metrics, "pool_lag_steps"),
            "canary_cosine_mean": sum(v["canary_cosine"] for v in canary) / len(canary) if canary else None,
            "canary_cosine_last": canary[-1]["canary_cosine"] if canary else None,
            "canary_overlap_last": canary[-1]["canary_overlap"] if canary else None,
            "training_answer_nats_last_tenth": _last_tenth(metrics, "answer_nats"),
            "correction_taken_share": _mean(metrics, "correction_taken"),
            "refresh_cost": report["refresh_cost"],
        }
    return found


def _mean(metrics: Metrics, name: str) -> float | None:
    values = [v[name] for v in metrics.values() if name in v]
    return sum(values) / len(values) if values else None


def _last_tenth(metrics: Metrics, name: str) -> float | None:
    values = [v[name] for v in metrics.values() if name in v]
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else None


def shown(value: float | None, form: str = ".3f") -> str:
    """A cell."""
    return "–" if value is None else format(value, form)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables."""
    policies: Mapping[str, Mapping[str, Any]] = result["policies"]
    limit = next(iter(policies.values()))["equal_time_seconds"]
    lines = [
        "# Policies for MEMORY while the compressor trains",
        "",
        f"    {result['command']}",
        "",
        f"{result['processor']}, {result['cores']} cores; load average after each command: {result['load_average_after_each_command']}.",
        "Held-out questions. *Fresh*: ranked and read on memory as the compressor is at that moment, which is what a whole encoding would give (and what",
        "serves in the end, as a MEMORY that does not fit its compressor is refused). *Stored*: on the MEMORY version in use.",
        "",
    ]
    for title, key in (
        ("At equal steps", "at_equal_steps"),
        (f"At equal wall time: the last look within the {limit:.0f} s of the quickest run", "at_equal_time"),
    ):
        lines += [f"## {title}", "", *_outcomes(policies, key), ""]
    lines += ["## What it costs", "", *_costs(policies), ""]
    return "\n".join(lines)


def _outcomes(policies: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    names = (
        "fresh_recall_at_1",
        "fresh_recall_at_5",
        "fresh_answer_nats",
        "stored_recall_at_1",
        "stored_recall_at_5",
        "stored_answer_nats",
    )
    heads = ("policy", "step", "seconds", *(name.replace("_at_", "@").replace("_", " ") for name in names))
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for policy, found in policies.items():
        values = found[key]
        if values is None:
            lines.append(f"| {policy} |{' – |' * (len(heads) - 1)}")
            continue
        cells = [f"{values['step']}", shown(values["seconds"], ".0f"), *(shown(values[name]) for name in names)]
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    return lines


def _costs(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    heads = (
        "policy", "questions/s", "blocked", "refreshes", "seconds of one", "MB of one", "share of device-seconds", "step beside a refresh (median s)",
        "step without", "pace beside", "re-ranking s", "mean lag (updates)", "mean lag of pools", "canary cosine, mean", "canary overlap, last",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for policy, found in policies.items():
        cost = found["refresh_cost"]
        count = cost["refreshes"]
        cells = [
            shown(found["questions_per_second"], ".2f"),
            shown(found["blocked_share"], ".2%"),
            str(count),
            shown(cost["seconds"] / count if count else None, ".1f"),
            shown(cost["bytes"] / count / 1e6 if count else None, ".1f"),
            shown(cost["compute_share"], ".1%"),
            shown(cost["median_step_seconds_beside_a_refresh"]),
            shown(cost["median_step_seconds_alone"]),
            shown(cost["throughput_beside_a_refresh"], ".0%"),
            shown(found["rerank_seconds"], ".0f"),
            shown(found["mean_memory_lag_steps"], ".1f"),
            shown(found["mean_pool_lag_steps"], ".1f"),
            shown(found["canary_cosine_mean"]),
            shown(found["canary_overlap_last"]),
        ]
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    return lines


def draw(runs: Mapping[str, Metrics], target: Path) -> None:
    """Recall@1 by step and by second, and the canary's cosine by step, of every policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    by_step, by_time, stale = figure.subplots(1, 3)
    for policy, metrics in runs.items():
        looks = evaluations(metrics)
        recalls = [v.get(f"{_FRESH}1", v.get("held_out_recall_at_1", 0.0)) for _, v in looks]
        by_step.plot([step for step, _ in looks], recalls, label=policy, marker=".")
        by_time.plot([v["seconds"] for _, v in looks], recalls, label=policy, marker=".")
        points = [(step, v["canary_cosine"]) for step, v in metrics.items() if "canary_cosine" in v]
        stale.plot([step for step, _ in points], [value for _, value in points], label=policy, marker=".")
    _label(by_step, "step", "held-out Recall@1, fresh memory")
    _label(by_time, "seconds", "held-out Recall@1, fresh memory")
    _label(stale, "step", "cosine of stored and fresh memory")
    by_step.legend()
    figure.savefig(target, dpi=120)


def _label(axes: Any, across: str, up: str, limits: Sequence[float] = (-0.02, 1.02)) -> None:
    axes.set(xlabel=across, ylabel=up, ylim=limits)
