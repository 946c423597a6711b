"""Figures as SVG, drawn without a browser and without scripts.

plotly draws in the browser, so its figures are empty on GitHub and in notebooks that nbconvert
exported, and a page of one figure holds 4.8 MB of scripts. `svg` draws the same figure from the
same data: some 20 kB, and every mark has its value as a tooltip. It knows heat maps, bars and
scatter plots, several panels, logarithmic and category axes: what `interp.plots` makes. Other
traces are refused, and are left to plotly.

Title and legend are drawn here. Below them lie the panels (`panels`), each a pair of `axes` with
traces (`trace_values`), drawn by `heat_map_marks` and `trace_marks` from single `marks`.
"""

from numbers import Real
from typing import Any

from interp.errors import InterpError
from interp.plots.marks import LETTER, clean, short, text_mark
from interp.plots.panels import panels_of
from interp.plots.trace_values import colour_of, plain


__all__ = ["KINDS", "svg"]

KINDS = ("heatmap", "bar", "scatter")


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
    panels = panels_of(figure, (width, height), top)
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
    values = [*plain(trace.x), *plain(trace.y)]
    other = (one for one in values if not isinstance(one, Real | str | None))
    return next((f"a {trace.type} over {type(one).__name__}" for one in other), "")


def _named(figure: Any) -> list[tuple[str, str]]:
    """Return name and colour of every trace of the legend; none if there is only one."""
    rows = [
        (str(one.name), colour_of(one, i))
        for i, one in enumerate(figure.data)
        if one.name and one.showlegend is not False
    ]
    return rows if len(rows) > 1 and figure.layout.showlegend is not False else []


def _header(title: str, named: list[tuple[str, str]], width: float) -> tuple[list[str], float]:
    """Return the marks of title and legend, and the height that they take."""
    marks, y = [], 8.0
    for line in _wrapped(title, int((width - 16) / (1.2 * LETTER))):
        y += 17
        marks.append(text_mark(8.0, y - 3, line, size=13))
    x = 8.0
    for name, colour in named:
        shown = short(name, 40)
        needed = 24 + LETTER * len(shown)
        if x == 8.0 or x + needed > width:
            x, y = 8.0, y + 16
        marks.append(f'<rect x="{x:.0f}" y="{y - 11:.0f}" width="10" height="10" fill="{colour}"/>')
        marks.append(text_mark(x + 14, y - 2, shown))
        x += needed
    return marks, y + 6


def _wrapped(text: str, letters: int) -> list[str]:
    """Cut a text into lines at spaces."""
    lines: list[str] = []
    for word in clean(text).split():
        if lines and len(lines[-1]) + 1 + len(word) <= letters:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
