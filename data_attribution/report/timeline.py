"""A figure of training as SVG text: curves over steps, one frame below the other, and readings.

All frames share the axis of steps, so that a reader sees what was read while a curve rose. A curve
or a row of readings with a `key` belongs to a head or a document: the script of the page shows it
while that one is chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_attribution.report.page import shown
from data_attribution.report.svg import LIGHT
from train.short_repr import short_repr


__all__ = ["Curve", "Frame", "Readings", "timeline"]

WIDTH, LEFT, RIGHT, HEIGHT, ROW, GAP = 1080, 160, 16, 74, 26, 26
MOST_POINTS = 300  # of a curve, which is thinned


@dataclass(frozen=True)
class Curve:
    """Values at steps; low and high are None where there is no interval."""

    points: Sequence[tuple[int, float, float | None, float | None]]
    key: str = ""
    colour: str = "c0"
    name: str = ""

    __repr__ = short_repr


@dataclass(frozen=True)
class Frame:
    """Curves on one axis of values, with what they measure and its unit."""

    title: str
    unit: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Readings:
    """Steps at which something was read."""

    title: str
    steps: Sequence[int]
    key: str = ""
    colour: str = "c2"

    __repr__ = short_repr


def timeline(
    frames: Sequence[Frame],
    readings: Sequence[Readings],
    last: int,
    *,
    chosen: Sequence[str] = (),
    said: str = "",
) -> str:
    """Return the figure.

    Args:
        last: Last step of the axis.
        chosen: Keys that are shown at first.
        said: What the figure shows, for those who do not see it.
    """
    marks, y = [], 22
    for frame in frames:
        marks.append(_frame(frame, y, last, chosen))
        y += HEIGHT + GAP
    # The rows of several documents lie over each other, and one of them is shown.
    rows = dict.fromkeys(bool(one.key) for one in readings)
    for keyed in rows:
        for one in readings:
            if bool(one.key) == keyed:
                marks.append(_readings(one, y, last, chosen))
        y += ROW + 6
    marks.append(_axis(y, last))
    return (
        f'<div class="wide"><svg class="timeline" viewBox="0 0 {WIDTH} {y + 34}" width="{WIDTH}" '
        f'role="img"><title>{shown(said)}</title>{"".join(marks)}</svg></div>'
    )


def _x(step: float | int, last: int) -> float:
    return LEFT + step / max(last, 1) * (WIDTH - LEFT - RIGHT)


def _with(key: str, chosen: Sequence[str]) -> str:
    """Return the attributes of what is shown while its head or document is chosen."""
    if not key:
        return ""
    return f' data-with="{shown(key)}"' + ("" if key in chosen else ' class="off"')


def _frame(frame: Frame, top: int, last: int, chosen: Sequence[str]) -> str:
    ends = [
        end
        for curve in frame.curves
        for _, *values in curve.points
        for end in values
        if end is not None
    ]
    low, high = min([*ends, 0.0]), max([*ends, 1e-9])

    def y(value: float | int) -> float:
        return top + HEIGHT - (value - low) / (high - low) * HEIGHT

    marks = [
        f'<text x="2" y="{top + HEIGHT / 2}" class="name">'
        f"{shown(frame.title)}</text>"
        f'<text x="2" y="{top + HEIGHT / 2 + 16}">{shown(frame.unit)}</text>'
    ]
    for value in (low, high):
        marks.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'class="stroke rule" stroke="{LIGHT["rule"]}"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>'
        )
    marks += [
        f"<g{_with(one.key, chosen)}>{_curve(one, y, last)}</g>"
        for one in frame.curves
        if one.points
    ]
    return "".join(marks)


def _curve(curve: Curve, y: Callable[[float | int], float], last: int) -> str:
    points = curve.points[:: max(1, len(curve.points) // MOST_POINTS)]
    if points[-1] != curve.points[-1]:
        points = [*points, curve.points[-1]]
    path = " ".join(f"{_x(step, last):.1f},{y(value):.1f}" for step, value, *_ in points)
    colour = LIGHT[curve.colour]
    marks = [
        f'<polyline points="{path}" class="stroke {curve.colour}" fill="none" stroke="{colour}" '
        'stroke-width="2"/>'
    ]
    bounded = [
        (step, low, high) for step, _, low, high in points if low is not None and high is not None
    ]
    if len(bounded) > 1:
        upper = [f"{_x(step, last):.1f},{y(high):.1f}" for step, _, high in bounded]
        lower = [f"{_x(step, last):.1f},{y(low):.1f}" for step, low, _ in reversed(bounded)]
        marks.insert(
            0,
            f'<polygon points="{" ".join(upper + lower)}" class="{curve.colour}" '
            f'fill="{colour}" opacity=".16"/>',
        )
    if len(points) < 40:
        for step, value, low, high in points:
            bounds = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
            marks.append(
                f'<circle cx="{_x(step, last):.1f}" cy="{y(value):.1f}" r="3.5" '
                f'class="{curve.colour}" fill="{colour}"><title>{shown(curve.name)}, step '
                f"{step:,}: {value:.3g}{bounds}</title></circle>"
            )
    return "".join(marks)


def _readings(one: Readings, top: int, last: int, chosen: Sequence[str]) -> str:
    places = sorted({round(_x(step + 0.5, last)) for step in one.steps})
    path = "".join(f"M{x} {top}v{ROW - 8}" for x in places)
    return (
        f"<g{_with(one.key, chosen)}>"
        f'<text x="2" y="{top + 14}" class="name">'
        f"{shown(one.title)}</text>"
        f'<path d="{path}" class="stroke {one.colour}" stroke="{LIGHT[one.colour]}" '
        f'stroke-width="1.5"><title>{shown(one.title)}: read at {len(set(one.steps)):,} steps'
        "</title></path></g>"
    )


def _axis(top: int, last: int) -> str:
    marks = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top}" y2="{top}" class="stroke axis" '
        f'stroke="{LIGHT["axis"]}"/>'
    ]
    for step in _ticks(last):
        x = _x(step, last)
        marks.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + 4}" class="stroke axis" '
            f'stroke="{LIGHT["axis"]}"/><text x="{x:.1f}" y="{top + 17}" text-anchor="middle">'
            f"{step:,}</text>"
        )
    marks.append(f'<text x="2" y="{top + 17}" class="name">training step</text>')
    return "".join(marks)


def _ticks(last: int) -> list[int]:
    """Return round steps, at most nine."""
    size = 1
    while last / size > 8:
        size = size * 5 // 2 if str(size).startswith("2") else size * 2
    return list(range(0, last + 1, size))
