"""Pictures of an evaluation: recall over k, the answer's likelihood by what was read, utility against score."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clara.config.evaluation import CONDITIONS
from training.evaluation.alignment import CANDIDATES, GENERATOR, TEXT
from training.evaluation.measures import CURVE_AT, Figure, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_DPI = 110


def _canvas(num_columns: int, num_lines: int = 1) -> "Canvas":
    # Without pyplot: no global state, no display.
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(5.2 * num_columns, 3.8 * num_lines), layout="constrained")


def _png(canvas: "Canvas") -> bytes:
    stream = io.BytesIO()
    # Without the software's name and date, equal figures give equal bytes.
    canvas.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def retriever_of(label: str) -> str:
    """Who found what a row of this label is about: R of `R/GENERATOR` and of `text/R`."""
    front, _, back = label.partition("/")
    return back if front == "text" and back else front


def recall_curves(rows: Mapping[str, Sequence[Row]], title: str) -> bytes | None:
    """PNG: mean recall at 1 to 20 over the index and in the pools, a line for each retriever; None without rows."""
    panels = {}
    for where, name in (("index", "whole index"), ("pool", "pools")):
        # What one retriever found is the same whoever reads it.
        curves: dict[str, list[list[float]]] = {}
        for label, of_label in rows.items():
            known = [row[f"{where}_recall_curve"] for row in of_label if row.get(f"{where}_recall_curve")]
            if known:
                curves.setdefault(retriever_of(label), known)
        if curves:
            panels[name] = curves
    if not panels:
        return None
    canvas = _canvas(len(panels))
    for axes, (name, curves) in zip(
        canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        for retriever, known in curves.items():
            axes.plot(CURVE_AT, np.mean(known, axis=0), marker=".", label=retriever)
        axes.set(xlabel="k", xticks=(1, 5, 10, 15, 20), title=f"{title}: {name}", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    canvas.axes[0].set_ylabel("Recall@k")
    canvas.axes[0].legend(fontsize=8)
    return _png(canvas)


def likelihood_bars(figures: Mapping[str, Mapping[str, Figure]], title: str) -> bytes | None:
    """PNG: mean log-likelihood per answer token with 95 % intervals, by what was read, a group for each system.

    None where nothing was read.
    """
    figures = {
        system: of for system, of in figures.items() if any(name.endswith(".log_likelihood_per_token") for name in of)
    }
    if not figures:
        return None
    canvas = _canvas(2)
    axes = canvas.subplots()
    width = 0.8 / len(CONDITIONS)
    for position, condition in enumerate(CONDITIONS):
        name = f"{condition}.log_likelihood_per_token"
        known = [(x, of[name]) for x, of in enumerate(figures.values()) if name in of]
        if known:
            values = [f.value for _, f in known]
            errors = [[f.value - f.low for _, f in known], [f.high - f.value for _, f in known]]
            at = [x + (position - (len(CONDITIONS) - 1) / 2) * width for x, _ in known]
            axes.bar(at, values, width, yerr=errors, capsize=2, label=condition)
    axes.set_xticks(range(len(figures)), list(figures))
    axes.set(ylabel="log-likelihood of the answer [nats a token]", title=f"{title}: what the generator read")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, ncols=len(CONDITIONS))
    return _png(canvas)


def utility_points(rows: Mapping[str, Sequence[Row]], title: str) -> bytes | None:
    """PNG: utility of each candidate against its retrieval score: first and last system in columns, readers in rows.

    Scores are standardised within each question, as they are compared within it only. None where alignment was not
    measured.
    """
    known = {name: [row for row in of if row.get(CANDIDATES)] for name, of in rows.items()}
    names = [name for name, of in known.items() if of]
    if not names:
        return None
    columns = list(dict.fromkeys((names[0], names[-1])))
    canvas = _canvas(len(columns), 2)
    grid = canvas.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    for line, who in zip(grid, (GENERATOR, TEXT), strict=True):
        for axes, name in zip(line, columns, strict=True):
            for positive, colour, label in ((False, "tab:gray", "other"), (True, "tab:green", "right")):
                points = [
                    (z, candidate[who])
                    for row in known[name]
                    for z, candidate in zip(
                        _standardised([c["score"] for c in row[CANDIDATES]]), row[CANDIDATES], strict=True
                    )
                    if candidate["positive"] is positive
                ]
                if points:
                    axes.scatter(*zip(*points, strict=True), s=9, alpha=0.6, color=colour, label=label)
            values = [row[f"alignment.{who}"] for row in known[name] if row[f"alignment.{who}"] is not None]
            mean = f", mean correlation {np.mean(values):.2f}" if values else ""
            axes.set_title(f"{title}: {name}{mean}", fontsize=9)
            axes.grid(alpha=0.3)
        line[0].set_ylabel(f"utility, {who} [nats]")
    for axes in grid[-1]:
        axes.set_xlabel("retrieval score, standardised in its pool")
    grid[0][0].legend(fontsize=8)
    return _png(canvas)


def _standardised(scores: Sequence[float]) -> list[float]:
    values = np.asarray(scores)
    spread = float(values.std())
    return ((values - values.mean()) / (spread or 1.0)).tolist()
