"""Pictures of the evidence: recall of all systems, learning curves, reading against compression."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from training.evaluation.measures import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_DPI = 110


def _canvas(width: float = 8.0) -> "Canvas":
    from matplotlib.figure import Figure as Canvas  # without pyplot: no global state, no display

    return Canvas(figsize=(width, 3.8), layout="constrained")


def _png(canvas: "Canvas") -> bytes:
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def recall_bars(found: Mapping[str, Mapping[str, Figure | None]]) -> bytes | None:
    """PNG: Recall@2 with 95 % intervals, a group for each set, a bar for each system."""
    if not found:
        return None
    canvas = _canvas(10)
    axes = canvas.subplots()
    splits, width = list(next(iter(found.values()))), 0.85 / len(found)
    for position, (system, of) in enumerate(found.items()):
        known = [(x, figure) for x, split in enumerate(splits) if (figure := of[split]) is not None]
        if known:
            errors = [[f.value - f.low for _, f in known], [f.high - f.value for _, f in known]]
            at = [x + (position - (len(found) - 1) / 2) * width for x, _ in known]
            axes.bar(at, [f.value for _, f in known], width, yerr=errors, capsize=2, label=system)
    axes.set_xticks(range(len(splits)), splits)
    axes.set(ylabel="Recall@2 in the pool", ylim=(0, 1.02))
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, ncols=4)
    return _png(canvas)


def learning(curves: Mapping[str, Sequence[tuple[int, float]]], width: int = 5) -> bytes | None:
    """PNG: share of training pools whose first document is a supporting one, averaged over `width` steps."""
    known = {name: points for name, points in curves.items() if points}
    if not known:
        return None
    canvas = _canvas()
    axes = canvas.subplots()
    for name, points in known.items():
        spans = [points[i : i + width] for i in range(0, len(points), width)]
        axes.plot(
            [span[-1][0] for span in spans],
            [sum(v for _, v in span) / len(span) for span in spans],
            marker=".",
            label=name,
        )
    axes.set(xlabel="step", ylabel="a supporting paragraph in front", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(canvas)


def reading_curve(found: Sequence[tuple[float, Mapping[str, Figure]]]) -> bytes | None:
    """PNG: the answer's log-likelihood from the right memory and from a wrong one, against the compression."""
    known = [(ratio, of) for ratio, of in found if "right.log_likelihood" in of and "wrong.log_likelihood" in of]
    if not known:
        return None
    canvas = _canvas()
    axes = canvas.subplots()
    for condition in ("right", "wrong"):
        of_condition = [(ratio, of[f"{condition}.log_likelihood"]) for ratio, of in known]
        values = [f.value for _, f in of_condition]
        errors = [[f.value - f.low for _, f in of_condition], [f.high - f.value for _, f in of_condition]]
        axes.errorbar(
            [ratio for ratio, _ in of_condition],
            values,
            yerr=errors,
            marker="o",
            capsize=3,
            label=f"{condition} memory",
        )
    axes.set(xlabel="document tokens for each memory token", ylabel="log-likelihood of the answer [nats]")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(canvas)
