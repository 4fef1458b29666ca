"""Pictures of an evaluation: recall over k, and the answer's likelihood by what was read."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.evaluation.finders import CONDITIONS
from training.evaluation.measures import CURVE_AT, Figure, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_DPI = 110


def _canvas(num_columns: int) -> "Canvas":
    # Without pyplot: no global state, no display.
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(5.2 * num_columns, 3.8), layout="constrained")


def _png(canvas: "Canvas") -> bytes:
    stream = io.BytesIO()
    # Without the software's name and date, equal figures give equal bytes.
    canvas.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def recall_curves(rows: Mapping[str, Sequence[Row]], title: str) -> bytes:
    """PNG: mean recall at 1 to 20, over the whole index and in the pools, a line for each system of `rows`."""
    canvas = _canvas(2)
    for axes, where, name in zip(canvas.subplots(1, 2, sharey=True), ("index", "pool"), ("whole index", "pools"), strict=True):
        for system, of_system in rows.items():
            curves = [row[f"{where}_recall_curve"] for row in of_system if row.get(f"{where}_recall_curve")]
            if curves:
                axes.plot(CURVE_AT, np.mean(curves, axis=0), marker=".", label=system)
        axes.set(xlabel="k", xticks=(1, 5, 10, 15, 20), title=f"{title}: {name}", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    canvas.axes[0].set_ylabel("Recall@k")
    canvas.axes[0].legend(fontsize=8)
    return _png(canvas)


def likelihood_bars(figures: Mapping[str, Mapping[str, Figure]], title: str) -> bytes:
    """PNG: mean log-likelihood of the answer a token with 95 % intervals, by what the generator read, a group for each system."""
    canvas = _canvas(2)
    axes = canvas.subplots()
    width = 0.8 / len(CONDITIONS)
    for place, condition in enumerate(CONDITIONS):
        name = f"{condition}.log_likelihood_per_token"
        known = [(x, of[name]) for x, of in enumerate(figures.values()) if name in of]
        if known:
            values = [f.value for _, f in known]
            errors = [[f.value - f.low for _, f in known], [f.high - f.value for _, f in known]]
            at = [x + (place - (len(CONDITIONS) - 1) / 2) * width for x, _ in known]
            axes.bar(at, values, width, yerr=errors, capsize=2, label=condition)
    axes.set_xticks(range(len(figures)), list(figures))
    axes.set(ylabel="log-likelihood of the answer [nats a token]", title=f"{title}: what the generator read")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, ncols=len(CONDITIONS))
    return _png(canvas)
