"""Tables and curves of `infra.refresh_policies`: policies at equal steps and equal wall time, and their costs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Metrics = Mapping[int, Mapping[str, float]]
# Of one seed: each policy's figures, as `compare` gives them.
BySeed = Mapping[str, Mapping[str, Any]]
_FRESH, _STORED = "held_out_fresh_pool_recall_at_", "held_out_pool_recall_at_"


def evaluations(metrics: Metrics) -> list[tuple[int, Mapping[str, float]]]:
    """The steps at which held-out questions were evaluated, with their figures."""
    return [(step, values) for step, values in metrics.items() if "held_out_answer_nats" in values]


def outcome(step: int, values: Mapping[str, float]) -> dict[str, float | None]:
    """Recall@1 and @5 and nats per answer token, by fresh memory (a full encoding at that step) and by stored memory.

    Pools that are searched for instead of published have figures by stored memory only.
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
    """Outcome of each policy after its last step, and when the fastest run had finished; its costs and staleness."""
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
            "looks": [outcome(*look) for look in looks],
            "staleness": report["staleness"],
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


def cell(values: Iterable[float | None], form: str = ".3f") -> str:
    """Mean and range over the seeds; a dash without values."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, low, high = (format(value, form) for value in (sum(known) / len(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low} to {high})"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables."""
    seeds: list[BySeed] = list(result["by_seed"].values())
    limits = cell((next(iter(policies.values()))["equal_time_seconds"] for policies in seeds), ".0f")
    lines = [
        "# Policies for MEMORY while the compressor trains",
        "",
        f"    {result['command']}",
        "",
        f"{result['processor']}, {result['cores']} cores; load average after each command: "
        f"{result['load_average_after_each_command']}.",
        f"Seeds of world and training: {', '.join(result['by_seed'])}; a cell is their mean, and their range if they "
        "differ.",
        "Held-out questions. *Fresh*: ranked and read on memory of the compressor at that step, as a full encoding",
        "gives it (and as it is served: a MEMORY that does not fit its compressor is refused). *Stored*: on the MEMORY",
        "version in use.",
        "",
    ]
    for title, key in (
        ("At equal steps", "at_equal_steps"),
        (f"At equal wall time: the last look within the {limits} s of the seed's quickest run", "at_equal_time"),
    ):
        lines += [f"## {title}", "", *_outcomes(seeds, key), ""]
    lines += ["## What it costs", "", *_costs(seeds), ""]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]


def _outcomes(seeds: Sequence[BySeed], key: str) -> list[str]:
    forms = {"step": ".0f", "seconds": ".0f"}
    names = (
        "step",
        "seconds",
        "fresh_recall_at_1",
        "fresh_recall_at_5",
        "fresh_answer_nats",
        "stored_recall_at_1",
        "stored_recall_at_5",
        "stored_answer_nats",
    )
    rows = []
    for policy in seeds[0]:
        looks = [policies[policy][key] or {} for policies in seeds]
        rows.append([policy, *(cell([look.get(name) for look in looks], forms.get(name, ".3f")) for name in names)])
    return _table(("policy", *(name.replace("_at_", "@").replace("_", " ") for name in names)), rows)


_COSTS: dict[str, tuple[Callable[[Mapping[str, Any], Mapping[str, Any]], float | None], str]] = {
    "questions/s": (lambda found, cost: found["questions_per_second"], ".2f"),
    "blocked": (lambda found, cost: found["blocked_share"], ".2%"),
    "refreshes": (lambda found, cost: cost["refreshes"], ".3g"),
    "seconds of one": (lambda found, cost: cost["seconds"] / cost["refreshes"] if cost["refreshes"] else None, ".1f"),
    "seconds from request to readiness": (lambda found, cost: cost.get("mean_ready_seconds"), ".1f"),
    "lost tries": (lambda found, cost: cost.get("lost_tries"), ".3g"),
    "MB of one": (lambda found, cost: cost["bytes"] / cost["refreshes"] / 1e6 if cost["refreshes"] else None, ".1f"),
    "share of device-seconds": (lambda found, cost: cost["compute_share"], ".1%"),
    "step beside a refresh (median s)": (lambda found, cost: cost["median_step_seconds_beside_a_refresh"], ".3f"),
    "step without": (lambda found, cost: cost["median_step_seconds_alone"], ".3f"),
    "pace beside": (lambda found, cost: cost["throughput_beside_a_refresh"], ".0%"),
    "re-ranking s": (lambda found, cost: found["rerank_seconds"], ".0f"),
    "mean lag (updates)": (lambda found, cost: found["mean_memory_lag_steps"], ".1f"),
    "mean lag of pools": (lambda found, cost: found["mean_pool_lag_steps"], ".1f"),
    "canary cosine, mean": (lambda found, cost: found["canary_cosine_mean"], ".3f"),
    "canary overlap, last": (lambda found, cost: found["canary_overlap_last"], ".3f"),
}


def _costs(seeds: Sequence[BySeed]) -> list[str]:
    rows = []
    for policy in seeds[0]:
        each = [policies[policy] for policies in seeds]
        rows.append(
            [
                policy,
                *(
                    cell((value(found, found["refresh_cost"]) for found in each), form)
                    for value, form in _COSTS.values()
                ),
            ]
        )
    return _table(("policy", *_COSTS), rows)


def draw(runs: Mapping[str, Sequence[Metrics]], target: Path) -> None:
    """Recall@5 by step and by second, and the canary's cosine by step, of every policy; a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    by_step, by_time, stale = figure.subplots(1, 3)
    for number, (policy, seeds) in enumerate(runs.items()):
        for seed, metrics in enumerate(seeds):
            style: dict[str, Any] = {
                "color": f"C{number}",
                "label": policy if seed == 0 else None,
                "marker": ".",
                "linewidth": 1,
            }
            looks = evaluations(metrics)
            recalls = [v.get(f"{_FRESH}5", v.get("held_out_recall_at_5", 0.0)) for _, v in looks]
            by_step.plot([step for step, _ in looks], recalls, **style)
            by_time.plot([v["seconds"] for _, v in looks], recalls, **style)
            points = [(step, v["canary_cosine"]) for step, v in metrics.items() if "canary_cosine" in v]
            stale.plot([step for step, _ in points], [value for _, value in points], **style)
    _label(by_step, "step", "held-out Recall@5, fresh memory")
    _label(by_time, "seconds", "held-out Recall@5, fresh memory")
    # Between runs its lowest value varies from 0.5 to 0.99.
    _label(stale, "step", "cosine of stored and fresh memory", limits=None)
    by_step.legend()
    figure.savefig(target, dpi=120)


def _label(axes: Any, across: str, up: str, limits: Sequence[float] | None = (-0.02, 1.02)) -> None:
    axes.set(xlabel=across, ylabel=up)
    if limits is not None:
        axes.set_ylim(limits)
