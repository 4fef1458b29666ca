"""Curves of a run as pictures."""

from collections.abc import Mapping
from pathlib import Path

_PICTURES = {
    "loss": ("loss", "answer_nats", "labels_loss", "utility_loss"),
    "retrieval": ("pool_has_positive", "positive_selected", "positive_first"),
    "held_out_recall": ("held_out_recall_at_1", "held_out_recall_at_5", "held_out_recall_at_20"),
    "held_out_pool_recall": ("held_out_pool_recall_at_1", "held_out_pool_recall_at_5"),
    "held_out_answer": ("held_out_answer_nats", "held_out_right_nats", "held_out_wrong_nats"),
    "staleness": (
        "canary_cosine",
        "canary_cosine_lowest",
        "canary_overlap",
        "canary_recall_stored",
        "canary_recall_fresh",
    ),
    "staleness_steps": ("staleness_steps", "memory_lag_steps", "pool_lag_steps"),
    "refresh_shares": ("refresh_compute_share", "blocked_share"),
    "gradient_norm": ("gradient_norm",),
    "seconds_of_a_step": (
        "step_seconds",
        "search_seconds",
        "rerank_seconds",
        "blocked_seconds",
        "canary_seconds",
        "held_out_seconds",
    ),
}


def draw(metrics: Mapping[int, Mapping[str, float]], folder: Path) -> list[Path]:
    """Write a PNG for each group of figures that the run has. Returns the files.

    A vertical line marks each step that is the first on another MEMORY version.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    steps = list(metrics)
    versions = [metrics[step].get("used_memory_version", 0.0) for step in steps]
    switches = [step for step, before, now in zip(steps[1:], versions, versions[1:], strict=False) if before != now]
    files = []
    for title, names in _PICTURES.items():
        found = [name for name in names if any(name in values for values in metrics.values())]
        if not found:
            continue
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name in found:
            points = [(step, values[name]) for step, values in metrics.items() if name in values]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "")
        for step in switches:
            axes.axvline(step, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xlabel("step")
        axes.set_title(title.replace("_", " "))
        axes.legend()
        files.append(folder / f"{title}.png")
        figure.savefig(files[-1], dpi=120)
    return files
