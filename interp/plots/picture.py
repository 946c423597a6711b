"""Figures as SVG, drawn without a browser and without scripts.

plotly draws in the browser, so its figures are empty on GitHub and in notebooks that nbconvert
exported, and a page of one figure holds 4.8 MB of scripts. This module draws the same figure from
the same data: some 20 kB, and every mark has its value as a tooltip. It knows heat maps, bars and
scatter plots, several panels, logarithmic and category axes: what `interp.plots` makes. Other
traces are refused, and are left to plotly.
"""

import re
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, isfinite, log10
from numbers import Real
from typing import Any

from interp.errors import InterpError
from train.short_repr import short_repr


__all__ = ["COLOURS", "KINDS", "svg"]

# Plotly's default ten colours, listed because an interval needs the colour of its curve.
COLOURS = (
    "#636efa", "#ef553b", "#00cc96", "#ab63fa", "#ffa15a", "#19d3f3", "#ff6692", "#b6e880",
    "#ff97ff", "#fecb52",
)  # fmt: skip
KINDS = ("heatmap", "bar", "scatter")
LETTER = 6.2  # width in pixels of a letter of 11 pixels, on average
LONGEST = 26  # letters of a label; longer ones are cut
# Cells of all heat maps of a figure above which they are embedded pictures without tooltips: a cell
# with its tooltip takes some 115 bytes, and a figure is to take less than 100 kB.
CELLS = 600
MANY = 40  # categories above which only some are labelled, and labels are not turned
NUMBERED = 64  # cells up to which each shows its number
DASHES = {"dot": "2 4", "dash": "6 4", "dashdot": "6 3 2 3"}
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
Scalar = float | int | str | None


def svg(figure: Any) -> str:
    """Return a plotly figure of heat maps, bars and scatter plots as the text of an SVG file.

    Raises:
        InterpError: The figure has no traces, or one of another kind or without what `interp.plots`
            gives: x and y that are numbers or names and, for a heat map, limits and colours.

    Examples:
        >>> drawn = plots.svg(plots.heads(torch.zeros(2, 4), title="heads", unit="share"))
        >>> drawn.startswith("<svg "), drawn.count("L1 H3: 0.000")
        (True, 1)
    """
    other = [kind for one in figure.data if (kind := _undrawn(one))]
    if other or not figure.data:
        what = other[0] if other else "a figure without traces"
        raise InterpError(f"{what} is not drawn here; draw {', '.join(KINDS)}")
    layout = figure.layout
    width, height = float(layout.width or 680), float(layout.height or 340)
    named = _named(figure)
    heads, top = _header(layout.title.text or "", named, width)
    panels = _panels(figure, (width, height), top)
    marks = [mark for panel in panels for mark in panel.marks()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="sans-serif" font-size="11" '
        'fill="#222">'
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>{"".join(heads + marks)}</svg>'
    )


def _undrawn(trace: Any) -> str:
    """Say in words what a trace is that is not drawn here; "" for one that is."""
    if trace.type not in KINDS:
        return f"a {trace.type}"
    if trace.type == "bar" and trace.orientation == "h":
        return "a horizontal bar"
    if trace.x is None or trace.y is None:
        return f"a {trace.type} without x or y"
    if trace.type == "heatmap" and None in (trace.zmin, trace.zmax, trace.colorscale):
        return "a heatmap without zmin, zmax and colorscale"
    values = [*_plain(trace.x), *_plain(trace.y)]
    other = (one for one in values if not isinstance(one, Real | str | None))
    return next((f"a {trace.type} over {type(one).__name__}" for one in other), "")


def _named(figure: Any) -> list[tuple[str, str]]:
    """Return name and colour of every trace of the legend; none if there is only one."""
    rows = [
        (str(one.name), _colour(one, COLOURS[i % len(COLOURS)]))
        for i, one in enumerate(figure.data)
        if one.name and one.showlegend is not False
    ]
    return rows if len(rows) > 1 and figure.layout.showlegend is not False else []


def _header(title: str, named: list[tuple[str, str]], width: float) -> tuple[list[str], float]:
    """Return the marks of title and legend, and the height that they take."""
    marks, y = [], 8.0
    for line in _wrapped(title, int((width - 16) / (1.2 * LETTER))):
        y += 17
        marks.append(_text(8.0, y - 3, line, size=13))
    x = 8.0
    for name, colour in named:
        shown = _short(name, 40)
        needed = 24 + LETTER * len(shown)
        if x == 8.0 or x + needed > width:
            x, y = 8.0, y + 16
        marks.append(f'<rect x="{x:.0f}" y="{y - 11:.0f}" width="10" height="10" fill="{colour}"/>')
        marks.append(_text(x + 14, y - 2, shown))
        x += needed
    return marks, y + 6


def _wrapped(text: str, letters: int) -> list[str]:
    """Cut a text into lines at spaces."""
    lines: list[str] = []
    for word in _clean(text).split():
        if lines and len(lines[-1]) + 1 + len(word) <= letters:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


# --- axes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """Conversion of the values of one axis to pixels.

    Attributes:
        names: Categories in order; () for numbers.
        low: Number at `start`; its logarithm if `log`.
        high: Number at `end`.
        log: True if the axis is logarithmic; numbers of 0 and below are left out.
        start: Pixel of the beginning, at the left or at the bottom.
        end: Pixel of the end.
    """

    names: tuple[str, ...]
    low: float
    high: float
    log: bool
    start: float
    end: float

    __repr__ = short_repr

    @property
    def step(self) -> float:
        """Pixels between neighbouring categories."""
        return abs(self.end - self.start) / max(len(self.names), 1)

    def at(self, value: Scalar) -> float | None:
        """Return the pixel of a value; None where nothing was measured."""
        if self.names:
            share = (
                None if value is None else (self.names.index(str(value)) + 0.5) / len(self.names)
            )
        else:
            number = self.number(value)
            share = None if number is None else (number - self.low) / (self.high - self.low)
        return None if share is None else self.start + share * (self.end - self.start)

    def number(self, value: Scalar) -> float | None:
        """Return the number on the axis; None for no number, and for 0 on a logarithmic axis."""
        if value is None or isinstance(value, str) or not isfinite(value):
            return None
        if self.log:
            return log10(value) if value > 0 else None
        return float(value)

    def ticks(self, room: float) -> list[tuple[float, str]]:
        """Return pixels and labels of the ticks, at least `room` pixels apart."""
        if self.names:
            every = max(1, ceil(room / self.step))
            labels = [(self.at(one), _short(one)) for one in self.names[::every]]
        else:
            labels = [(self.at(one), f"{one:g}") for one in self._round_numbers(room)]
        return [(at, label) for at, label in labels if at is not None]

    def _round_numbers(self, room: float) -> list[float]:
        most = max(2.0, abs(self.end - self.start) / room)
        if self.log:
            every = max(1, ceil((self.high - self.low) / most))
            between = (1, 2, 5) if self.high - self.low < 2 else (1,)
            powers = range(floor(self.low), floor(self.high) + 1, every)
            found = [part * 10.0**i for i in powers for part in between]
            return [one for one in found if self.low <= log10(one) <= self.high]
        rough = (self.high - self.low) / min(most, 6.0)
        size = 10.0 ** floor(log10(rough))
        step = next(size * one for one in (1, 2, 2.5, 5, 10) if size * one >= rough * 0.999)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [float(f"{i * step:.6g}") for i in range(first, last + 1)]


def _axis(
    values: Sequence[Scalar], given: Any, room: tuple[float, float], *, zero: bool, tight: bool
) -> _Axis:
    """Return the axis of these values, with plotly's settings for it.

    Args:
        values: All values on the axis.
        given: The axis of plotly's layout.
        room: Pixels at which the axis begins and ends.
        zero: The axis includes 0, where bars begin.
        tight: The axis ends near its values, as the sides of a curve do.
    """
    start, end = room
    if given.type == "category" or any(isinstance(one, str) for one in values):
        names = tuple(dict.fromkeys(str(one) for one in values if one is not None))
        return _Axis(names or ("",), 0.0, 1.0, False, start, end)
    log = given.type == "log"
    blank = _Axis((), 0.0, 1.0, log, start, end)
    numbers = [n for one in values if (n := blank.number(one)) is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if zero and not log:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    pad = 0.02 if tight else 0.06
    below = 0.0 if zero and low == 0 else pad * (high - low)
    above = 0.0 if zero and high == 0 else pad * (high - low)
    low, high = low - below, high + above
    if given.range:
        low, high = map(float, given.range)
    return _Axis((), low, high, log, start, end)


# --- panels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    """One pair of axes with its traces.

    Attributes:
        traces: Traces and their colours.
        x: The horizontal axis.
        y: The vertical axis.
        titles: Titles of the axes, and of the panel.
        labelled: True for each axis that shows its ticks, horizontal and vertical.
        lines: Lines across the panel: x or y, value, and dash.
        notes: Texts at a value of y.
        unit: Unit beside the scale of colours; None without a scale.
        embedded: True if heat maps are embedded pictures, without a tooltip for each cell.
    """

    traces: tuple[tuple[Any, str], ...]
    x: _Axis
    y: _Axis
    titles: tuple[str, str, str]
    labelled: tuple[bool, bool]
    lines: tuple[tuple[str, float, str], ...]
    notes: tuple[tuple[float, str], ...]
    unit: str | None
    embedded: bool

    __repr__ = short_repr

    def marks(self) -> Iterator[str]:
        """Return everything that the panel draws."""
        yield from self._frame()
        bars = [one for one, _ in self.traces if one.type == "bar"]
        for trace, colour in self.traces:
            if trace.type == "heatmap":
                yield from _cells(trace, self.x, self.y, embedded=self.embedded)
            elif trace.type == "bar":
                yield from _bars(trace, colour, self.x, self.y, bars.index(trace), len(bars))
            else:
                yield from _scatter(trace, colour, self.x, self.y)
        if self.unit is not None:
            trace = next(one for one, _ in self.traces if one.type == "heatmap")
            yield from _scale(trace, self.unit, self.x.end, (self.y.end, self.y.start))

    def _frame(self) -> Iterator[str]:
        x, y = self.x, self.y
        (across, up, title), (below, beside) = self.titles, self.labelled
        turned = False
        if beside:
            for at, label in y.ticks((16.0 if len(y.names) > 8 else 1.0) if y.names else 34.0):
                if not y.names:
                    yield _line(x.start, at, x.end, at, "#e5e5e5")
                yield _text(x.start - 5, at + 4, label, "end")
        if below:
            longest = max((len(_short(one)) for one in x.names), default=0)
            many = len(x.names) > MANY
            ticks = x.ticks((LETTER * longest + 8 if many else 13.0) if x.names else 60.0)
            turned = (
                bool(x.names)
                and len(ticks) > 1
                and LETTER * longest > 0.95 * (ticks[1][0] - ticks[0][0])
            )
            for at, label in ticks:
                yield (
                    _turned(at + 3, y.start + 10, label)
                    if turned
                    else _text(at, y.start + 14, label, "middle")
                )
        if self.labelled != (False, False):
            yield _line(x.start, y.start, x.end, y.start, "#999")
        middle = (y.start + y.end) / 2
        if up:
            yield _turned(14.0, middle, _short(up, 60), 90, "middle")
        if across:
            depth = 46 if below and turned else 30
            yield _text((x.start + x.end) / 2, y.start + depth, across, "middle")
        if title:
            yield _text((x.start + x.end) / 2, y.end - 6, title, "middle")
        for axis, value, dash in self.lines:
            at = (x if axis == "x" else y).at(value)
            if at is not None:
                ends = (at, y.start, at, y.end) if axis == "x" else (x.start, at, x.end, at)
                yield _line(*ends, "#444", dash)
        for value, text in self.notes:
            at = y.at(value)
            if at is not None:
                yield _text(x.end - 3, at - 4, text, "end")


# Traces of every pair of axes, with their colours.
_Pairs = dict[tuple[str, str], list[tuple[Any, str]]]


def _panels(figure: Any, size: tuple[float, float], top: float) -> list[_Panel]:
    """Return the panels of a figure, laid out below its title and legend."""
    layout = figure.layout
    pairs: _Pairs = {}
    for i, trace in enumerate(figure.data):
        key = (trace.xaxis or "x", trace.yaxis or "y")
        pairs.setdefault(key, []).append((trace, _colour(trace, COLOURS[i % len(COLOURS)])))
    across = {name: layout[f"xaxis{name[1:]}"] for name, _ in pairs}
    up = {name: layout[f"yaxis{name[1:]}"] for _, name in pairs}
    on_paper = [one for one in layout.annotations if one.xref == one.yref == "paper"]
    over = [str(one.text) for one in on_paper] if len(across) > 1 else []
    scale = next((t for t in figure.data if t.type == "heatmap" and t.showscale is not False), None)
    left, bottom = _margins(pairs, across, up, size)
    right, top = size[0] - (14 if scale is None else 78), top + (18 if over else 6)
    lowest = min((one.domain or (0.0, 1.0))[0] for one in up.values())
    maps = (trace.z for trace in figure.data if trace.type == "heatmap")
    n_cells = sum(len(row) for rows in maps for row in _plain(rows))
    found = []
    for number, ((x_name, y_name), traces) in enumerate(pairs.items()):
        x_given, y_given = across[x_name], up[y_name]
        kinds = {one.type for one, _ in traces}
        loose = any("text" in str(one.mode) for one, _ in traces if one.type == "scatter")
        x_room, y_room = _part(x_given, left, right), _part(y_given, bottom, top)
        at_bottom = (y_given.domain or (0.0, 1.0))[0] <= lowest
        unit = None
        if scale is not None and any(one is scale for one, _ in traces):
            unit = str(scale.colorbar.title.text or "")
        panel = _Panel(
            traces=tuple(traces),
            x=_axis(_values(pairs, 0, x_name), x_given, x_room, zero=False, tight=not loose),
            y=_axis(_values(pairs, 1, y_name), y_given, y_room, zero="bar" in kinds, tight=False),
            titles=(
                str(x_given.title.text or "") if at_bottom else "",
                str(y_given.title.text or ""),
                over[number] if number < len(over) else "",
            ),
            labelled=(
                x_given.visible is not False and at_bottom,
                y_given.visible is not False and (number == 0 or not over),
            ),
            lines=() if number else tuple(_lines(layout, y_name)),
            notes=() if number else tuple(_notes(layout)),
            unit=unit,
            embedded=n_cells > CELLS,
        )
        found.append(panel)
    return found


def _margins(
    pairs: _Pairs, across: dict[str, Any], up: dict[str, Any], size: tuple[float, float]
) -> tuple[float, float]:
    """Return the left end and the bottom of the panels, beside and above their labels."""
    width, height = size
    beside = [
        _short(str(value))
        for name, axis in up.items()
        if axis.visible is not False
        for value in _values(pairs, 1, name)
        if isinstance(value, str)
    ]
    titled = any(one.title.text for one in up.values())
    left = 12 + LETTER * max(map(len, beside), default=6) + 16 * titled
    below = {v for name in across for v in _values(pairs, 0, name) if isinstance(v, str)}
    room = (width - left) / max(len(below) * len(across), 1)
    turned = len(below) <= MANY and LETTER * max((len(_short(v)) for v in below), default=0) > room
    titled = any(one.title.text for one in across.values())
    return left, height - (24 + 18 * titled + 26 * turned)


def _part(given: Any, start: float, end: float) -> tuple[float, float]:
    """Return the pixels between which an axis lies: its share of the room of all panels."""
    low, high = map(float, given.domain or (0.0, 1.0))
    return start + low * (end - start), start + high * (end - start)


def _notes(layout: Any) -> Iterator[tuple[float, str]]:
    """Yield the texts at a value of y, such as the name of a line."""
    for one in layout.annotations:
        if one.yref == "y" and one.text:
            yield float(one.y), str(one.text)


def _lines(layout: Any, y_name: str) -> Iterator[tuple[str, float, str]]:
    """Yield the lines across the first panel, which plotly keeps as shapes."""
    for one in layout.shapes:
        dash = DASHES.get(one.line.dash or "", "")
        if one.type == "line" and one.yref == y_name and one.y0 == one.y1:
            yield "y", float(one.y0), dash
        elif one.type == "line" and one.xref == "x" and one.x0 == one.x1:
            yield "x", float(one.x0), dash


def _values(pairs: _Pairs, axis: int, name: str) -> list[Scalar]:
    """Return every value of the traces on an axis, with the ends of their error bars."""
    found: list[Scalar] = []
    for key, traces in pairs.items():
        if key[axis] != name:
            continue
        for trace, _ in traces:
            values = list(_plain(trace.x if axis == 0 else trace.y))
            found += values
            if axis == 1 and trace.type != "heatmap":
                found += [end for ends in _ends(trace, values) if ends for end in ends]
    return found


def _ends(trace: Any, values: Sequence[Scalar]) -> list[tuple[float, float] | None]:
    """Return the lower and upper end of every error bar; None for no bar."""
    above, below = trace.error_y.array, trace.error_y.arrayminus
    if above is None:
        return [None] * len(values)
    below = above if below is None else below
    return [
        None if a is None or b is None or not isinstance(v, int | float) else (v - b, v + a)
        for v, a, b in zip(values, _plain(above), _plain(below), strict=True)
    ]


# --- traces --------------------------------------------------------------------------------------


def _cells(trace: Any, x: _Axis, y: _Axis, *, embedded: bool) -> Iterator[str]:
    rows = [[None if v is None else float(v) for v in _plain(row)] for row in trace.z]
    across, up = list(_plain(trace.x)), list(_plain(trace.y))
    shade = _shader(trace)
    wide, high = x.step, y.step
    if embedded:
        # Cells that share a pixel show the largest of them, so that none is lost.
        beside, above = ceil(len(across) / (x.end - x.start)), ceil(len(rows) / (y.start - y.end))
        columns = zip(*(_largest(row, beside) for row in rows), strict=True)
        small = zip(*(_largest(column, above) for column in columns), strict=True)
        picture = _png([[shade(one) for one in row] for row in reversed([*small])])
        yield (
            f'<image x="{x.start:.1f}" y="{y.end:.1f}" width="{x.end - x.start:.1f}" '
            f'height="{y.start - y.end:.1f}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{picture}"/>'
        )
        return
    written = len(rows) * len(across) <= NUMBERED and wide >= 30 and high >= 14
    for name, row in zip(up, rows, strict=True):
        for label, value in zip(across, row, strict=True):
            left, middle = (x.at(label) or 0.0) - wide / 2, y.at(name) or 0.0
            shown = "not measured" if value is None or not isfinite(value) else f"{value:.3f}"
            red, green, blue = shade(value)
            yield (
                f'<rect x="{left:.1f}" y="{middle - high / 2:.1f}" width="{wide:.1f}" '
                f'height="{high:.1f}" fill="#{red:02x}{green:02x}{blue:02x}">'
                f"<title>{_safe(f'{name} {label}: {shown}')}</title></rect>"
            )
            if written and value is not None and isfinite(value):
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 120
                colour = "#fff" if dark else "#222"
                number = f"{round(value, 2) + 0.0:.2f}"  # no -0.00
                yield _text(left + wide / 2, middle + 4, number, "middle", fill=colour)


def _largest(row: Sequence[float | None], each: int) -> list[float | None]:
    """Return of every `each` neighbouring values the one of largest size."""
    parts = [row[i : i + each] for i in range(0, len(row), each)]
    return [
        max(part, key=lambda one: -1.0 if one is None or not isfinite(one) else abs(one))
        for part in parts
    ]


def _bars(trace: Any, colour: str, x: _Axis, y: _Axis, number: int, of: int) -> Iterator[str]:
    width = 0.8 * x.step / of
    names, values = list(_plain(trace.x)), list(_plain(trace.y))
    zero = y.at(0.0) or y.start
    for name, value, ends in zip(names, values, _ends(trace, values), strict=True):
        tip, centre = y.at(value), x.at(name)
        if tip is None or centre is None:
            continue
        left = centre + (number - of / 2) * width
        bounds = "" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
        which = f"{name}, {trace.name}" if trace.name else name
        yield (
            f'<rect x="{left:.1f}" y="{min(zero, tip):.1f}" width="{0.92 * width:.1f}" '
            f'height="{abs(zero - tip):.1f}" fill="{colour}">'
            f"<title>{_safe(f'{which}: {value:.3f}{bounds}')}</title></rect>"
        )
        yield from _error_bar(left + 0.46 * width, ends, y, "#222")


def _scatter(trace: Any, colour: str, x: _Axis, y: _Axis) -> Iterator[str]:
    across, up = list(_plain(trace.x)), list(_plain(trace.y))
    mode = trace.mode or ("lines+markers" if len(across) < 20 else "lines")
    spots = [
        None if (a := x.at(one)) is None or (b := y.at(other)) is None else (a, b)
        for one, other in zip(across, up, strict=True)
    ]
    if trace.fill == "toself":
        ring = " ".join(f"{a:.1f},{b:.1f}" for spot in spots if spot for a, b in [spot])
        yield f'<polygon points="{ring}" fill="{colour}" opacity="{trace.opacity or 0.2:g}"/>'
        return
    if "lines" in mode:
        pieces = "".join(
            f"{'L' if before else 'M'}{spot[0]:.1f} {spot[1]:.1f}"
            for before, spot in pairwise([None, *spots])
            if spot
        )
        dash = DASHES.get(trace.line.dash or "", "")
        broad = 2 if trace.line.width is None else trace.line.width
        yield (
            f'<path d="{pieces}" fill="none" stroke="{colour}" stroke-width="{broad:g}"'
            + (f' stroke-dasharray="{dash}"/>' if dash else "/>")
        )
    said = trace.hovertext if trace.hovertext is not None else trace.text
    texts = [said] * len(spots) if said is None or isinstance(said, str) else list(_plain(said))
    faint = ' opacity="0"' if trace.opacity == 0 else ""
    rows = zip(spots, across, up, texts, _ends(trace, up), strict=True)
    for spot, one, other, text, ends in rows:
        if spot is None:
            continue
        yield from _error_bar(spot[0], ends, y, colour)
        if "text" in mode:
            # On a white edge, because lines end here.
            edge = 'paint-order="stroke" stroke="#fff" stroke-width="5"'
            yield f"<g {edge}>{_text(spot[0], spot[1] + 4, str(text), 'middle')}</g>"
        elif "markers" in mode and "line-ns" in str(trace.marker.symbol):
            yield _line(spot[0], spot[1] - 4, spot[0], spot[1] + 4, colour)
        elif "markers" in mode:
            shown = [str(one) for one in (trace.name, text) if one is not None]
            shown += [] if faint else [f"{_number(one)}, {_number(other)}"]
            yield (
                f'<circle cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="3.5" fill="{colour}"{faint}>'
                f"<title>{_safe(': '.join(shown))}</title></circle>"
            )


def _error_bar(at: float, ends: tuple[float, float] | None, y: _Axis, colour: str) -> Iterator[str]:
    low, high = (None, None) if ends is None else (y.at(ends[0]), y.at(ends[1]))
    if low is not None and high is not None:
        yield _line(at, low, at, high, colour)
        for end in (low, high):
            yield _line(at - 3, end, at + 3, end, colour)


def _scale(trace: Any, unit: str, left: float, ends: tuple[float, float]) -> Iterator[str]:
    """Draw the scale of colours to the right of `left`, between two heights."""
    (top, bottom), shade = ends, _shader(trace)
    step = (bottom - top) / 24
    for i in range(24):
        value = trace.zmax + (trace.zmin - trace.zmax) * (i + 0.5) / 24
        colour = "#{:02x}{:02x}{:02x}".format(*shade(value))
        y = top + i * step
        yield (
            f'<rect x="{left + 10:.1f}" y="{y:.1f}" width="12" height="{step + 0.5:.1f}" '
            f'fill="{colour}"/>'
        )
    for value, y in ((trace.zmax, top + 8), (0.0, (top + bottom) / 2 + 4), (trace.zmin, bottom)):
        yield _text(left + 25, y, f"{value:.3g}")
    yield _turned(left + 70, (top + bottom) / 2, _short(unit, 60), 90, "middle")


def _shader(trace: Any) -> Callable[[float | None], tuple[int, int, int]]:
    """Return the function from a value to its colour, by the scale of a heat map."""
    stops = [(float(at), _rgb(colour)) for at, colour in trace.colorscale]
    if trace.reversescale:
        stops = [(1 - at, colour) for at, colour in reversed(stops)]
    low, high = float(trace.zmin), float(trace.zmax)

    def shade(value: float | None) -> tuple[int, int, int]:
        if value is None or not isfinite(value):
            return 204, 204, 204
        share = min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
        (a, one), (b, other) = next(
            (left, right) for left, right in pairwise(stops) if share <= right[0] + 1e-12
        )
        part = (share - a) / ((b - a) or 1.0)
        red, green, blue = (round(p + part * (q - p)) for p, q in zip(one, other, strict=True))
        return red, green, blue

    return shade


def _rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue of `#rrggbb` or `rgb(r, g, b)`."""
    if colour.startswith("#"):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    else:
        red, green, blue = (int(float(one)) for one in re.findall(r"[\d.]+", colour)[:3])
    return red, green, blue


def _png(rows: list[list[tuple[int, int, int]]]) -> str:
    """Return a picture with one pixel a cell, in base64."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)
    pixels = b"".join(b"\0" + bytes(part for cell in row for part in cell) for row in rows)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(pixels, 9)), chunk(b"IEND", b""))
    return b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


# --- marks ---------------------------------------------------------------------------------------


def _colour(trace: Any, usual: str) -> str:
    """Return the colour of a trace: its line's, its marker's, or the usual one."""
    if trace.type == "heatmap":
        return usual
    line = trace.line.color if trace.type == "scatter" else None
    marker = trace.marker.color if isinstance(trace.marker.color, str) else None
    return escape(line or marker or usual)


def _plain(values: Any) -> list[Any]:
    """Return a list of Python values from what plotly keeps."""
    if values is None:
        return []
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _number(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _clean(text: str) -> str:
    """Show line ends, and replace other control characters, which XML forbids."""
    return CONTROL.sub("\ufffd", text.replace("\n", "\\n").replace("\t", "\\t"))


def _safe(text: str) -> str:
    return escape(_clean(text))


def _short(text: str, letters: int = LONGEST) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "start", *, size: int = 11, fill: str = ""
) -> str:
    more = (f' text-anchor="{anchor}"' if anchor != "start" else "") + (
        (f' font-size="{size}"' if size != 11 else "") + (f' fill="{fill}"' if fill else "")
    )
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{_safe(text)}</text>'


def _turned(x: float, y: float, text: str, degrees: int = 35, anchor: str = "end") -> str:
    return (
        f'<text transform="translate({x:.1f} {y:.1f}) rotate(-{degrees})" text-anchor="{anchor}">'
        f"{_safe(text)}</text>"
    )
