"""Parts of figures: maps, bars, curves, and how a figure is kept.

Colours diverge around 0 (red works for the behaviour, blue against it), and an axis is labelled by
what it holds: tokens, heads, exposures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from interp.plots import export


if TYPE_CHECKING:
    import pandas

    from interp.statistics import Average, Estimate

__all__ = [
    "COLOURS",
    "HEIGHT",
    "WIDTH",
    "bars",
    "columns",
    "curves",
    "estimates",
    "figure",
    "framed",
    "grouped_bars",
    "heads",
    "heat_map",
    "interval",
    "lines",
    "shortened",
    "write",
]

# Plotly's own ten, named because an interval takes the colour of its curve.
COLOURS = (
    "#636efa", "#ef553b", "#00cc96", "#ab63fa", "#ffa15a", "#19d3f3", "#ff6692", "#b6e880",
    "#ff97ff", "#fecb52",
)  # fmt: skip
# Pixels: three figures of a notebook fit on one screen.
WIDTH, HEIGHT = 680, 340


def write(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as .html, which opens without a network, or .png; see `figure_files`.

    Raises:
        InterpError: Another suffix, or .png without matplotlib.
    """
    return export.write(figure, path)


def figure(titles: Sequence[str] = ()) -> go.Figure:
    """An empty figure; with titles, as many plots side by side that share their y axis."""
    if not titles:
        return go.Figure()
    from plotly.subplots import make_subplots

    return make_subplots(cols=len(titles), shared_yaxes=True, subplot_titles=list(titles))


def heads(values: Float[Tensor, "layer head"], *, title: str, unit: str) -> go.Figure:
    """One number per head, the first layer at the bottom."""
    n_layers, n_heads = values.shape
    down, across = [f"L{i}" for i in range(n_layers)], [f"H{i}" for i in range(n_heads)]
    return heat_map(values.tolist(), down, across, title=title, unit=unit)


def heat_map(
    values: list[list[float]], down: list[str], across: list[str], *, title: str, unit: str
) -> go.Figure:
    """Values over rows and columns, the first row at the bottom."""
    # What Ctrl-C left out is nan, and equals nothing, itself included.
    there = (abs(value) for row in values for value in row if value == value)
    limit = max(there, default=1.0) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=across,
            y=down,
            zmin=-limit,
            zmax=limit,
            colorscale="RdBu",
            reversescale=True,
            colorbar={"title": {"text": unit, "side": "right"}},
            hovertemplate="%{y} %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    return framed(figure, title)


def bars(
    names: list[str],
    values: list[float],
    low: list[float] | None,
    high: list[float] | None,
    *,
    title: str,
    unit: str,
) -> go.Figure:
    """Values with their intervals, where there are any."""
    error = None if low is None or high is None else interval(values, low, high)
    figure = go.Figure(go.Bar(x=names, y=values, error_y=error))
    figure.update_yaxes(title=unit)
    return framed(figure, title)


def grouped_bars(
    frame: "pandas.DataFrame",
    *,
    across: str,
    by: str,
    value: str,
    low: str,
    high: str,
    title: str,
    unit: str,
) -> go.Figure:
    """Values of a table with their intervals: a group per `across`, a colour per `by`.

    The other arguments name columns; rows keep their order. A row without bounds has no bar.
    """
    figure = go.Figure()
    for name, rows in frame.groupby(by, sort=False):
        values = rows[value].tolist()
        error = interval(values, rows[low].tolist(), rows[high].tolist())
        figure.add_bar(x=rows[across].tolist(), y=values, error_y=error, name=str(name))
    figure.update_xaxes(title=across)
    figure.update_yaxes(title=unit)
    return framed(figure, title)


def interval(
    values: list[float], low: Sequence[float | None], high: Sequence[float | None]
) -> dict[str, object]:
    """Plotly's error bars are distances from the value; None draws none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if t is None else t - v for v, t in zip(values, high, strict=True)],
        "arrayminus": [None if b is None else v - b for v, b in zip(values, low, strict=True)],
    }


def framed(figure: go.Figure, title: str) -> go.Figure:
    # Four digits, which is more than an interval leaves certain, and half the size of a file.
    for trace in figure.data:
        for name in ("y", "z"):
            if (values := getattr(trace, name, None)) is not None:
                setattr(trace, name, shortened(values))
    figure.update_layout(title=title, template="plotly_white", width=WIDTH, height=HEIGHT)
    return figure.update_layout(margin={"t": 48, "b": 40, "l": 60, "r": 20})


def shortened(values: Any) -> Any:
    """Fractions with four significant digits, at any depth; all else as it is."""
    if isinstance(values, float):
        return float(f"{values:.4g}")
    if isinstance(values, str | int | None):
        return values
    return [shortened(one) for one in (values.tolist() if hasattr(values, "tolist") else values)]


def curves(
    x: Sequence[object], series: "dict[str, Average]", *, title: str, unit: str, across: str = ""
) -> go.Figure:
    """Lines of means with their intervals, one a name."""
    figure = go.Figure()
    for name, found in series.items():
        figure.add_scatter(**_averages(x, found), name=name)
    figure.update_xaxes(title=across)
    figure.update_yaxes(title=unit)
    return framed(figure, title)


def lines(
    x: Sequence[object],
    series: dict[str, Sequence[float]],
    *,
    title: str,
    unit: str,
    across: str = "",
) -> go.Figure:
    """Numbers that have no interval, such as counts, one line a name."""
    figure = go.Figure()
    for name, values in series.items():
        figure.add_scatter(x=list(x), y=list(values), name=name, mode="lines")
    figure.update_xaxes(title=across)
    figure.update_yaxes(title=unit)
    return framed(figure, title)


def columns(
    names: Sequence[str], series: "dict[str, Average]", *, title: str, unit: str
) -> go.Figure:
    """Bars of means with their intervals, side by side."""
    figure = go.Figure()
    for name, found in series.items():
        figure.add_bar(**_averages(names, found), name=name)
    figure.update_yaxes(title=unit)
    return framed(figure, title)


def _averages(x: Sequence[object], found: "Average") -> dict[str, object]:
    """Means with error bars, four digits each."""
    values, low, high = (
        None if t is None else [round(v, 4) for v in t.tolist()]
        for t in (found.values, found.low, found.high)
    )
    none = [None] * len(x)
    error = interval(values or [], low or none, high or none)
    return {"x": list(x), "y": values, "error_y": error}


def estimates(x: Sequence[object], column: "Sequence[Estimate]") -> dict[str, object]:
    """Values with error bars, four digits each."""
    values = [round(one.value, 4) for one in column]
    low = [None if one.low is None else round(one.low, 4) for one in column]
    high = [None if one.high is None else round(one.high, 4) for one in column]
    return {"x": list(x), "y": values, "error_y": interval(values, low, high)}
