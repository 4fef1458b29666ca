"""Small pictures for pages, as SVG: bars and a line, drawn without any library, which workers and users need not install."""

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 220, 64, 36, 12


def number(value: float) -> str:
    """A figure with three digits or more, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _frame(inside: list[str], top: float, left: str, right: str, what: str) -> str:
    """Axes around a picture: nothing to `top` upwards, from `left` to `right`."""
    low, high = _HEIGHT - _BOTTOM, _TOP
    axes = [
        f'<line x1="{_LEFT}" y1="{low}" x2="{_WIDTH}" y2="{low}" class="axis"/>',
        f'<line x1="{_LEFT}" y1="{high}" x2="{_LEFT}" y2="{low}" class="axis"/>',
        f'<text x="{_LEFT - 6}" y="{high + 10}" text-anchor="end">{number(top)}</text>',
        f'<text x="{_LEFT - 6}" y="{low}" text-anchor="end">0</text>',
        f'<text x="{_LEFT}" y="{_HEIGHT - 18}">{escape(left)}</text>',
        f'<text x="{_WIDTH}" y="{_HEIGHT - 18}" text-anchor="end">{escape(right)}</text>',
        f'<text x="{(_LEFT + _WIDTH) // 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(what)}</text>',
    ]
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join([*axes, *inside])}</svg>'


def bars(counts: Sequence[float], labels: Sequence[str], what: str) -> str:
    """One bar for each count, in order; `labels` show when it is pointed at, the first and the last beneath."""
    top = max([*counts, 1])
    step = (_WIDTH - _LEFT) / max(1, len(counts))
    room = _HEIGHT - _BOTTOM - _TOP
    drawn = []
    for place, (count, label) in enumerate(zip(counts, labels, strict=True)):
        height = room * count / top
        at = f'x="{_LEFT + place * step:.1f}" y="{_HEIGHT - _BOTTOM - height:.1f}" width="{max(step - 1, 0.5):.1f}" height="{height:.1f}"'
        drawn.append(f'<rect {at} class="bar"><title>{escape(label)}: {number(count)}</title></rect>')
    return _frame(drawn, top, labels[0] if labels else "", labels[-1] if labels else "", what)


def line(points: Sequence[tuple[float, float]], what: str, unit: str) -> str:
    """A line through points, ascending; x from the first to the last, y from 0."""
    top, begin, end = max([1.0, *(y for _, y in points)]), points[0][0], points[-1][0]
    width, room = _WIDTH - _LEFT, _HEIGHT - _BOTTOM - _TOP
    places = " ".join(
        f"{_LEFT + width * (x - begin) / max(end - begin, 1e-9):.1f},{_HEIGHT - _BOTTOM - room * y / top:.1f}"
        for x, y in points
    )
    return _frame(
        [f'<polyline points="{places}" class="line"/>'], top, f"{number(begin)} {unit}", f"{number(end)} {unit}", what
    )
