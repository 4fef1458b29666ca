"""Pages about artefacts: tables, charts, quotes and text in sections, rendered and escaped by one template."""

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clara.storage.folders import atomic_write
from clara.storage.paths import join

if TYPE_CHECKING:
    import jinja2

NAME = "summary.html"
"""The page's file; it is stored in the artefact and is no part of it."""

NUM_BARS = 40
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 220, 64, 36, 12
_GEOMETRY = {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "low": _HEIGHT - _BOTTOM, "high": _TOP}


# --- what a page consists of -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows of cells, numbers aligned right; `heads` of the columns, if any."""

    rows: Sequence[Sequence[Any]]
    heads: Sequence[str] = ()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Text:
    """A piece of text in an HTML element: `p`, `h3` or `pre`."""

    text: str
    kind: str = "p"


@dataclass(frozen=True)
class Quote:
    """A document with the examples made from it.

    Attributes:
        title, text: of the document.
        answers: texts without a question.
        pairs: questions with answers.
        num_more: pairs that are not shown.
    """

    title: str
    text: str
    answers: Sequence[str] = ()
    pairs: Table | None = None
    num_more: int = 0
    kind: ClassVar[str] = "quote"


@dataclass(frozen=True)
class Bar:
    """A bar of a chart in SVG units; `label` shows when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Bars or a line over two axes.

    Attributes:
        caption: of the chart.
        top: value at the upper end of the y axis, which begins at 0.
        first, last: labels of the x axis' ends.
        bars: in SVG units.
        points: of a line, in SVG units.
    """

    caption: str
    top: float
    first: str
    last: str
    bars: Sequence[Bar] = ()
    points: Sequence[tuple[float, float]] = ()
    kind: ClassVar[str] = "chart"


Block = Table | Text | Quote | Chart


@dataclass(frozen=True)
class Section:
    """A part of a page under its title; no title: the first part."""

    title: str
    blocks: Sequence[Block]


# --- making blocks ---------------------------------------------------------------------------------------------------


def bar_chart(counts: Sequence[float], labels: Sequence[str], caption: str) -> Chart:
    """One bar for each count, in order, with its label."""
    top = max([*counts, 1])
    step = (_WIDTH - _LEFT) / max(1, len(counts))
    drawn = []
    for position, (count, label) in enumerate(zip(counts, labels, strict=True)):
        height = (_HEIGHT - _BOTTOM - _TOP) * count / top
        x, y = _LEFT + position * step, _HEIGHT - _BOTTOM - height
        drawn.append(Bar(x, y, max(step - 1, 0.5), height, f"{label}: {number(count)}"))
    return Chart(caption, top, labels[0] if labels else "", labels[-1] if labels else "", bars=drawn)


def line_chart(points: Sequence[tuple[float, float]], caption: str, unit: str) -> Chart:
    """A line through points in ascending order; x from the first to the last, y from 0."""
    top, begin, end = max([1.0, *(y for _, y in points)]), points[0][0], points[-1][0]
    width, height = _WIDTH - _LEFT, _HEIGHT - _BOTTOM - _TOP
    drawn = [
        (_LEFT + width * (x - begin) / max(end - begin, 1e-9), _HEIGHT - _BOTTOM - height * y / top) for x, y in points
    ]
    return Chart(caption, top, f"{number(begin)} {unit}", f"{number(end)} {unit}", points=drawn)


def grouped(counts: Sequence[int], unit: str) -> tuple[list[int], list[str]]:
    """A histogram's counts in at most `NUM_BARS` bars, each labelled with its range."""
    width = max(1, math.ceil(len(counts) / NUM_BARS))
    starts = range(0, len(counts), width)
    labels = [f"{start}" if width == 1 else f"{start} to {start + width - 1}" for start in starts]
    return [sum(counts[start : start + width]) for start in starts], [f"{label} {unit}" for label in labels]


def records(counts: Mapping[str, Any]) -> Section:
    """All counts of a manifest, and unused records by reason."""
    reasons = [
        (f"{what}: {reason}", count)
        for what, key in (("failed", "dead letters by reason"), ("dropped", "dropped by reason"))
        for reason, count in counts.get(key, {}).items()
    ]
    plain = Table([(name, value) for name, value in counts.items() if not isinstance(value, dict)])
    unused = [Text("Not used, by reason", "h3"), Table(reasons)] if reasons else [Text("Every record was used.")]
    return Section("Records", [plain, *unused])


def settings(made: Mapping[str, Any]) -> list[Section]:
    """Recipe and versions of an artefact, from its manifest's `made_by`."""
    recipe = Text(json.dumps(made["recipe"], indent=1, ensure_ascii=False), "pre")
    return [Section("Settings", [recipe]), Section("Versions", [Table(list(made["versions"].items()))])]


# --- rendering -------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A figure with three digits or more, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.tests["figure"] = _is_figure
    environment.filters["figure"] = lambda value: number(value) if _is_figure(value) else str(value)
    environment.globals.update(_GEOMETRY)
    return environment.get_template("page.html")


def page(title: str, sections: Iterable[Section]) -> str:
    """The whole page as self-contained HTML."""
    return _template().render(title=title, sections=list(sections)) + "\n"


def write(name: str, text: str) -> str:
    """Write a page into the artefact of that name. Returns its path or URL."""
    path = join(name, NAME)
    atomic_write(path, text)
    return path
