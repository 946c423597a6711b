"""The panels of a figure: which traces share a pair of axes, where they lie, what they draw."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from interp.plots.axes import Axis, axis_of
from interp.plots.heat_map_marks import cells, colour_scale
from interp.plots.marks import LETTER, line_mark, short, text_mark, turned_text
from interp.plots.trace_marks import bar_marks, scatter_marks
from interp.plots.trace_values import DASHES, Scalar, colour_of, error_ends, plain
from train.short_repr import short_repr


__all__ = ["Panel", "panels_of"]

# Cells of all heat maps of a figure above which they are embedded pictures without tooltips: a cell
# with its tooltip takes some 115 bytes, and a figure is to take less than 100 kB.
CELLS = 600
TURNED_LETTER = 0.82 * LETTER  # width of a letter that is turned by 35 degrees
MANY = 40  # categories above which only some are labelled, and labels are not turned


@dataclass(frozen=True)
class Panel:
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
    x: Axis
    y: Axis
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
                yield from cells(trace, self.x, self.y, embedded=self.embedded)
            elif trace.type == "bar":
                yield from bar_marks(trace, colour, self.x, self.y, bars.index(trace), len(bars))
            else:
                yield from scatter_marks(trace, colour, self.x, self.y)
        if self.unit is not None:
            trace = next(one for one, _ in self.traces if one.type == "heatmap")
            yield from colour_scale(trace, self.unit, self.x.end, (self.y.end, self.y.start))

    def _frame(self) -> Iterator[str]:
        x, y = self.x, self.y
        (across, up, title), (below, beside) = self.titles, self.labelled
        turned = False
        if beside:
            for at, label in y.ticks((16.0 if len(y.names) > 8 else 1.0) if y.names else 34.0):
                if not y.names:
                    yield line_mark(x.start, at, x.end, at, "#e5e5e5")
                yield text_mark(x.start - 5, at + 4, label, "end")
        if below:
            longest = max((len(short(one)) for one in x.names), default=0)
            many = len(x.names) > MANY
            ticks = x.ticks((LETTER * longest + 8 if many else 13.0) if x.names else 60.0)
            turned = (
                bool(x.names)
                and len(ticks) > 1
                and LETTER * longest > 0.95 * (ticks[1][0] - ticks[0][0])
            )
            for at, label in ticks:
                # A turned label ends at its tick; it is cut where it would leave the figure.
                yield (
                    turned_text(at + 3, y.start + 10, short(label, int((at + 3) / TURNED_LETTER)))
                    if turned
                    else text_mark(at, y.start + 14, label, "middle")
                )
        if self.labelled != (False, False):
            yield line_mark(x.start, y.start, x.end, y.start, "#999")
        middle = (y.start + y.end) / 2
        if up:
            yield turned_text(14.0, middle, short(up, 60), 90, "middle")
        if across:
            depth = 46 if below and turned else 30
            yield text_mark((x.start + x.end) / 2, y.start + depth, across, "middle")
        if title:
            yield text_mark((x.start + x.end) / 2, y.end - 6, title, "middle")
        for axis, value, dash in self.lines:
            at = (x if axis == "x" else y).at(value)
            if at is not None:
                ends = (at, y.start, at, y.end) if axis == "x" else (x.start, at, x.end, at)
                yield line_mark(*ends, "#444", dash)
        for value, text in self.notes:
            at = y.at(value)
            if at is not None:
                yield text_mark(x.end - 3, at - 4, text, "end")


# Traces of every pair of axes, with their colours.
_Pairs = dict[tuple[str, str], list[tuple[Any, str]]]


def panels_of(figure: Any, size: tuple[float, float], top: float) -> list[Panel]:
    """Return the panels of a figure, laid out below its title and legend."""
    layout = figure.layout
    pairs: _Pairs = {}
    for i, trace in enumerate(figure.data):
        key = (trace.xaxis or "x", trace.yaxis or "y")
        pairs.setdefault(key, []).append((trace, colour_of(trace, i)))
    across = {name: layout[f"xaxis{name[1:]}"] for name, _ in pairs}
    up = {name: layout[f"yaxis{name[1:]}"] for _, name in pairs}
    on_paper = [one for one in layout.annotations if one.xref == one.yref == "paper"]
    over = [str(one.text) for one in on_paper] if len(across) > 1 else []
    scale = next((t for t in figure.data if t.type == "heatmap" and t.showscale is not False), None)
    left, bottom = _margins(pairs, across, up, size)
    right, top = size[0] - (14 if scale is None else 78), top + (18 if over else 6)
    lowest = min((one.domain or (0.0, 1.0))[0] for one in up.values())
    maps = (trace.z for trace in figure.data if trace.type == "heatmap")
    n_cells = sum(len(row) for rows in maps for row in plain(rows))
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
        panel = Panel(
            traces=tuple(traces),
            x=axis_of(_values(pairs, 0, x_name), x_given, x_room, zero=False, tight=not loose),
            y=axis_of(_values(pairs, 1, y_name), y_given, y_room, zero="bar" in kinds, tight=False),
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
        short(str(value))
        for name, axis in up.items()
        if axis.visible is not False
        for value in _values(pairs, 1, name)
        if isinstance(value, str)
    ]
    titled = any(one.title.text for one in up.values())
    left = 12 + LETTER * max(map(len, beside), default=6) + 16 * titled
    below = {v for name in across for v in _values(pairs, 0, name) if isinstance(v, str)}
    room = (width - left) / max(len(below) * len(across), 1)
    turned = len(below) <= MANY and LETTER * max((len(short(v)) for v in below), default=0) > room
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
            values = list(plain(trace.x if axis == 0 else trace.y))
            found += values
            if axis == 1 and trace.type != "heatmap":
                found += [end for ends in error_ends(trace, values) if ends for end in ends]
    return found
