"""Small figures as SVG text, for a page that must open from disk without a network.

plotly.js alone exceeds the two megabytes that the page may take. These figures are a few kilobytes
each, and every mark has its value as a tooltip.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from train.short_repr import short_repr


__all__ = ["Bar", "Line", "Point", "bars", "heat_map", "lines", "points", "spark"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 260, 56, 40, 14
NAME = 30  # letters of a name that fit beside a row of points
COLOURS = ("c0", "c1", "c2", "c3")
# Colours by class, for a figure outside a page; the style of a page has them for light and dark.
LIGHT = {
    "c0": "#0b62b0",
    "c1": "#b8461f",
    "c2": "#3c7a3a",
    "c3": "#7a4f96",
    "faded": "#5a5f69",
    "for": "#f0a04b",
    "against": "#7fb2e5",
    "rule": "#dfe1e5",
    "axis": "#5a5f69",
    "error": "#1b1d21",
}


@dataclass(frozen=True)
class Line:
    """A named curve; y is None where nothing was measured; low and high shade its interval."""

    name: str
    y: Sequence[float | None]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False

    __repr__ = short_repr


@dataclass(frozen=True)
class Bar:
    """A bar of a group, with its interval."""

    group: str
    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A named number with its interval, if it has one; `faded` marks a value for comparison."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    faded: bool = False


def lines(curves: Sequence[Line], x: Sequence[str], *, across: str, up: str) -> str:
    """Return curves over equally spaced labels."""
    values = [y for curve in curves for y in (*curve.y, *curve.low, *curve.high) if y is not None]
    top, bottom = max([*values, 1e-9]), min([*values, 0.0])
    scale = _Scale(bottom, top, len(x))
    marks = [_frame(scale, up), _labels(scale, x), _legend([curve.name for curve in curves])]
    for curve, colour in zip(curves, COLOURS, strict=False):
        if curve.low:
            there = [i for i, y in enumerate(curve.y) if y is not None]
            upper = [f"{scale.x(i):.1f},{scale.y(curve.high[i]):.1f}" for i in there]
            lower = [f"{scale.x(i):.1f},{scale.y(curve.low[i]):.1f}" for i in reversed(there)]
            marks.append(
                f'<polygon points="{" ".join(upper + lower)}" {_fill(colour)} opacity=".14"/>'
            )
        points = [(i, y) for i, y in enumerate(curve.y) if y is not None]
        path = " ".join(f"{scale.x(i):.1f},{scale.y(y):.1f}" for i, y in points)
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        marks.append(f'<polyline points="{path}" {_stroke(colour)} stroke-width="2"{dash}/>')
        if len(points) < 40:
            marks += [
                f'<circle cx="{scale.x(i):.1f}" cy="{scale.y(y):.1f}" r="3" {_fill(colour)}>'
                f"<title>{escape(curve.name)}, {escape(x[i])}: {y:.3f}</title></circle>"
                for i, y in points
            ]
    return _svg(marks, across)


def bars(rows: Sequence[Bar], *, up: str) -> str:
    """Return grouped bars with intervals, one colour per name."""
    groups = list(dict.fromkeys(row.group for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    values = [value for row in rows for value in (row.value, row.low, row.high)]
    scale = _Scale(min([*values, 0.0]), max([*values, 1e-9]), len(groups), padded=True)
    marks = [_frame(scale, up), _labels(scale, groups), _legend(names)]
    width = 0.8 * scale.step / len(names)
    for row in rows:
        number = names.index(row.name)
        left = scale.x(groups.index(row.group)) + (number - len(names) / 2) * width
        zero, tip = scale.y(0.0), scale.y(row.value)
        middle = left + width / 2
        marks.append(
            f'<rect x="{left:.1f}" y="{min(zero, tip):.1f}" width="{width * 0.9:.1f}" '
            f'height="{abs(zero - tip):.1f}" {_fill(COLOURS[number])} opacity=".85"><title>'
            f"{escape(row.group)}, {escape(row.name)}: {row.value:.3f} "
            f"[{row.low:.3f}, {row.high:.3f}]</title></rect>"
            f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{scale.y(row.low):.1f}" '
            f'y2="{scale.y(row.high):.1f}" {_stroke("error")}/>'
        )
    return _svg(marks, "")


def heat_map(
    values: Sequence[Sequence[float]], down: Sequence[str], across: Sequence[str], *, cell: int = 56
) -> str:
    """Return coloured cells with their numbers; red is for positive values, blue for others."""
    limit = max((abs(value) for row in values for value in row), default=1.0) or 1.0
    marks = []
    for i, row in enumerate(values):
        y = TOP + 14 + i * cell
        marks.append(_text(LEFT - 8, y + cell / 2 + 4, down[i], "end"))
        for j, value in enumerate(row):
            x = LEFT + j * cell
            strength = min(abs(value) / limit, 1.0)
            colour = "for" if value > 0 else "against"
            marks.append(
                f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" '
                f'{_fill(colour)} fill-opacity="{strength:.3f}"/>'
                + _text(x + cell / 2 - 1, y + cell / 2 + 4, f"{value:.2f}", "middle")
            )
    marks += [
        _text(LEFT + j * cell + cell / 2, TOP + 8, name, "middle") for j, name in enumerate(across)
    ]
    width, height = LEFT + len(across) * cell + 8, TOP + 20 + len(down) * cell
    return f'<svg viewBox="0 0 {width} {height}" width="{width}">{"".join(marks)}</svg>'


def points(rows: Sequence[Point], *, across: str) -> str:
    """Return numbers as points along one axis, one row each, with a line at zero."""
    ends = [end for one in rows for end in (one.value, one.low, one.high) if end is not None]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    if low == high:
        high = low + 1.0
    left, width, height = 240, WIDTH - 240 - 70, 22 * len(rows) + 34

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * width

    axis = height - 26
    marks = [f'<line x1="{at(0.0):.1f}" x2="{at(0.0):.1f}" y1="2" y2="{axis}" {_stroke("axis")}/>']
    for part in range(5):
        value = low + part / 4 * (high - low)
        marks.append(_text(at(value), axis + 12, f"{value:.3g}", "middle"))
    for number, one in enumerate(rows):
        y, colour = 14 + 22 * number, "faded" if one.faded else COLOURS[0]
        label = one.name if len(one.name) <= NAME else one.name[: NAME - 1] + "…"
        bounds = "" if one.low is None or one.high is None else f" [{one.low:.3g}, {one.high:.3g}]"
        if one.low is not None and one.high is not None:
            marks.append(
                f'<line x1="{at(one.low):.1f}" x2="{at(one.high):.1f}" y1="{y}" y2="{y}" '
                f'{_stroke(colour)} stroke-width="2"/>'
            )
        marks.append(
            f'<circle cx="{at(one.value):.1f}" cy="{y}" r="4" {_fill(colour)}><title>'
            f"{escape(one.name)}: {one.value:.3g}{bounds}</title></circle>"
            + _text(left - 10, y + 4, label, "end")
            + _text(WIDTH - 4, y + 4, f"{one.value:.3g}", "end")
        )
    label = _text(left + width / 2, height - 1, across, "middle")
    return f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">{"".join(marks)}{label}</svg>'


def spark(y: Sequence[float], *, said: str, width: int = 170, height: int = 30) -> str:
    """Return an equally spaced curve above 0, as small as a word; `said` is its tooltip."""
    top, step = max([*y, 1e-9]), (width - 4) / max(len(y) - 1, 1)
    path = " ".join(
        f"{2 + i * step:.1f},{height - 2 - one / top * (height - 6):.1f}" for i, one in enumerate(y)
    )
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f"<title>{escape(said)}</title>"
        f'<polygon points="2,{height - 2} {path} {width - 2},{height - 2}" {_fill(COLOURS[0])} '
        f'opacity=".14"/><polyline points="{path}" {_stroke(COLOURS[0])} stroke-width="1.5"/></svg>'
    )


@dataclass(frozen=True)
class _Scale:
    """Conversion from values to pixels."""

    bottom: float
    top: float
    n: int
    padded: bool = False

    @property
    def step(self) -> float:
        return (WIDTH - LEFT - 10) / (self.n if self.padded else max(self.n - 1, 1))

    def x(self, index: int) -> float:
        return LEFT + (index + 0.5 * self.padded) * self.step

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP - 18)


def _frame(scale: _Scale, up: str) -> str:
    marks = []
    for value in _ticks(scale.bottom, scale.top):
        y = scale.y(value)
        marks.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" {_stroke("rule")}/>'
            + _text(LEFT - 6, y + 4, f"{value:,.0f}" if value >= 1000 else f"{value:.3g}", "end")
        )
    return "".join(marks) + f'<text x="4" y="{TOP - 2}" class="unit">{escape(up)}</text>'


def _ticks(bottom: float, top: float) -> list[float]:
    """Return at most five round numbers between two ends: multiples of 1, 2, 2.5 or 5."""
    if not top > bottom:
        return [bottom]
    size = 10.0 ** math.floor(math.log10((top - bottom) / 4))
    step = next(k * size for k in (1, 2, 2.5, 5, 10) if k * size * 4 >= (top - bottom) * 0.9999)
    ends = math.ceil(bottom / step - 1e-9), math.floor(top / step + 1e-9)
    return [k * step for k in range(ends[0], ends[1] + 1)]


def _labels(scale: _Scale, names: Sequence[str]) -> str:
    every = max(1, len(names) // 12)
    ends = {} if scale.padded else {len(names) - 1: "end"}  # the last would be cut off
    return "".join(
        _text(scale.x(i), HEIGHT - BOTTOM + 16, name, ends.get(i, "middle"))
        for i, name in enumerate(names)
        if i % every == 0
    )


def _legend(names: Sequence[str]) -> str:
    marks, x = [], LEFT + 90
    for name, colour in zip(names, COLOURS, strict=False):
        marks.append(
            f'<rect x="{x}" y="{TOP - 10}" width="10" height="10" {_fill(colour)}/>'
            + _text(x + 14, TOP - 1, name, "start")
        )
        x += 26 + 6.6 * len(name)
    return "".join(marks)


def _text(x: float | int, y: float | int, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(marks: Sequence[str], across: str) -> str:
    label = _text(WIDTH / 2, HEIGHT - 4, across, "middle")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{"".join(marks)}{label}</svg>'


def _fill(colour: str) -> str:
    return f'class="{colour}" fill="{LIGHT[colour]}"'


def _stroke(colour: str) -> str:
    return f'class="stroke {colour}" fill="none" stroke="{LIGHT[colour]}"'
