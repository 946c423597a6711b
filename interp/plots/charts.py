"""Plotly figures: heat maps, bars and curves with intervals.

Heat maps have a colour scale centred on 0: red for positive values, which support the behaviour,
and blue for negative ones. Axes are labelled with what they show: tokens, heads, exposures.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.plots import picture
from train.progress import count


if TYPE_CHECKING:
    import pandas

    from train.statistics import Average, Estimate

__all__ = [
    "HEIGHT",
    "WIDTH",
    "Figure",
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
]

# Size in pixels, chosen so that three figures of a notebook fit on one screen.
WIDTH, HEIGHT = 680, 340


class Figure(go.Figure):
    """A plotly figure that a notebook also keeps as SVG.

    plotly needs scripts, so a figure of its own is empty on GitHub and after `nbconvert --to html`;
    those show the SVG.
    """

    # Methods of plotly that are asked first: the one shows a figure with scripts only, the other
    # loads them from the network.
    _ipython_display_ = None  # pyright: ignore[reportAssignmentType]
    _repr_html_ = None  # pyright: ignore[reportAssignmentType]

    def _repr_mimebundle_(self, *given: Any, **options: Any) -> dict[str, Any]:
        """Return what plotly shows in this notebook, and the SVG."""
        found = {**super()._repr_mimebundle_(*given, **options), "text/plain": str(self)}
        with suppress(InterpError):  # it has traces that `interp.plots` does not make
            found["image/svg+xml"] = picture.svg(self)
        return found

    def __str__(self) -> str:
        return (
            f"Figure({self.layout.title.text!r}, {count(len(list(self.select_traces())), 'trace')})"
        )


def figure(titles: Sequence[str] = ()) -> Figure:
    """Return an empty figure or, with titles, one plot per title side by side with one y axis."""
    if not titles:
        return Figure()
    from plotly.subplots import make_subplots

    found, titled = Figure(), list(titles)
    make_subplots(cols=len(titled), shared_yaxes=True, subplot_titles=titled, figure=found)
    return found


def heads(
    values: Float[Tensor, "layer head"], *, title: str, unit: str, from_zero: bool = False
) -> Figure:
    """Draw a heat map with one number per head, the first layer at the bottom.

    Args:
        from_zero: Begin the scale of colours at 0, for numbers that cannot be negative.

    Examples:
        >>> figure = plots.heads(torch.zeros(2, 4), title="heads", unit="share")
        >>> figure.data[0].type, len(figure.data[0].z)
        ('heatmap', 2)
    """
    n_layers, n_heads = values.shape
    down, across = [f"L{i}" for i in range(n_layers)], [f"H{i}" for i in range(n_heads)]
    axes = ("head", "layer")
    rows = values.tolist()
    return heat_map(rows, down, across, title=title, unit=unit, axes=axes, from_zero=from_zero)


def heat_map(
    values: list[list[float]],
    down: list[str],
    across: list[str],
    *,
    title: str,
    unit: str,
    axes: tuple[str, str] = ("", ""),
    from_zero: bool = False,
) -> Figure:
    """Draw a heat map of values over rows and columns, the first row at the bottom.

    Args:
        axes: What the columns and what the rows are, in words.
        from_zero: Begin the scale of colours at 0, for values that cannot be negative;
            otherwise 0 is in its middle.

    Examples:
        >>> figure = plots.heat_map([[1.0, 2.0]], ["L0"], ["a", "b"], title="map", unit="nats")
        >>> figure.data[0].type
        'heatmap'
    """
    # Values that an interrupted sweep did not reach are NaN, which `value == value` leaves out.
    there = (abs(value) for row in values for value in row if value == value)
    limit = max(there, default=1.0) or 1.0
    figure = Figure(
        go.Heatmap(
            z=values,
            x=across,
            y=down,
            zmin=0.0 if from_zero else -limit,
            zmax=limit,
            colorscale="Reds" if from_zero else "RdBu",
            reversescale=not from_zero,
            colorbar={"title": {"text": unit, "side": "right"}},
            hovertemplate="%{y} %{x}: %{z:.3f}<extra></extra>",
        )
    )
    across_title, down_title = (name or None for name in axes)
    figure.update_xaxes(type="category", title=across_title)
    figure.update_yaxes(title=down_title)
    return framed(figure, title)


def bars(
    names: list[str],
    values: list[float],
    low: list[float] | None,
    high: list[float] | None,
    *,
    title: str,
    unit: str,
) -> Figure:
    """Draw bars, with intervals if `low` and `high` are given.

    Examples:
        >>> low, high = [0.7, 0.1], [0.9, 0.3]
        >>> figure = plots.bars(["L0H1", "L0H3"], [0.8, 0.2], low, high, title="ioi", unit="share")
        >>> len(figure.data), figure.layout.title.text
        (1, 'ioi')
    """
    error = None if low is None or high is None else interval(values, low, high)
    figure = Figure(go.Bar(x=names, y=values, error_y=error))
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
) -> Figure:
    """Draw values of a table as bars with intervals: a group per `across`, a colour per `by`.

    `across`, `by`, `value`, `low` and `high` name columns of the table. Rows keep their order; a
    row without bounds gets no error bar.
    """
    figure = Figure()
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
    """Return Plotly error bars for intervals: distances from the value, None for no bar."""
    ends = zip(values, low, high, strict=True)
    # nan, which is not equal to itself, marks values without an interval.
    bars = [
        (None, None) if b is None or t is None or b != b else (v - b, t - v) for v, b, t in ends
    ]
    below, above = ([bar[i] for bar in bars] for i in (0, 1))
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def framed(figure: Figure, title: str) -> Figure:
    """Round a figure's values, and give it title, size and margins; return the same figure."""
    # Four significant digits are more than the intervals justify, and halve the size of the file.
    for trace in figure.data:
        for name in ("y", "z"):
            if (values := getattr(trace, name, None)) is not None:
                setattr(trace, name, shortened(values))
    figure.update_layout(title=title, template="plotly_white", width=WIDTH, height=HEIGHT)
    figure.update_layout(margin={"t": 48, "b": 40, "l": 60, "r": 20})
    return figure


def shortened(values: Any) -> Any:
    """Round floats to four significant digits in nested lists and arrays, which become lists.

    Text and integers stay as they are.

    Examples:
        >>> plots.shortened([0.123456, [12345.678, "a"]])
        [0.1235, [12350.0, 'a']]
    """
    if isinstance(values, float):
        return float(f"{values:.4g}")
    if isinstance(values, str | int | None):
        return values
    return [shortened(one) for one in (values.tolist() if hasattr(values, "tolist") else values)]


def curves(
    x: Sequence[object], series: "dict[str, Average]", *, title: str, unit: str, across: str = ""
) -> Figure:
    """Draw one line of means with intervals for each name."""
    figure = Figure()
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
) -> Figure:
    """Draw one line for each name, for numbers without intervals such as counts.

    Examples:
        >>> figure = plots.lines([0, 600], {"facts": [0.0, 1.0]}, title="recall", unit="share")
        >>> [trace.name for trace in figure.data]
        ['facts']
    """
    figure = Figure()
    for name, values in series.items():
        figure.add_scatter(x=list(x), y=list(values), name=name, mode="lines")
    figure.update_xaxes(title=across)
    figure.update_yaxes(title=unit)
    return framed(figure, title)


def columns(names: Sequence[str], series: "dict[str, Average]", *, title: str, unit: str) -> Figure:
    """Draw bars of means with intervals, those of different series side by side."""
    figure = Figure()
    for name, found in series.items():
        figure.add_bar(**_averages(names, found), name=name)
    figure.update_yaxes(title=unit)
    return framed(figure, title)


def _averages(x: Sequence[object], found: "Average") -> dict[str, object]:
    """Return means with error bars as arguments of a trace, rounded to four decimals."""
    values, low, high = (
        None if t is None else [round(v, 4) for v in t.tolist()]
        for t in (found.values, found.low, found.high)
    )
    none = [None] * len(x)
    error = interval(values or [], low or none, high or none)
    return {"x": list(x), "y": values, "error_y": error}


def estimates(x: Sequence[object], column: "Sequence[Estimate]") -> dict[str, object]:
    """Return estimates with error bars as arguments of a trace, rounded to four decimals."""
    values = [round(one.value, 4) for one in column]
    low = [None if one.low is None else round(one.low, 4) for one in column]
    high = [None if one.high is None else round(one.high, 4) for one in column]
    return {"x": list(x), "y": values, "error_y": interval(values, low, high)}
