"""Parts of figures: maps, bars, curves, and how a figure is kept.

Colours diverge around 0 (red works for the behaviour, blue against it), and an axis is labelled by
what it holds: tokens, heads, exposures.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from interp.plots import export


if TYPE_CHECKING:
    import pandas

    from interp.patching import Effects, Trace
    from interp.statistics import Average
    from interp.training_dynamics import Recall

__all__ = [
    "bars",
    "columns",
    "curves",
    "effects",
    "framed",
    "grouped_bars",
    "heads",
    "heat_map",
    "interval",
    "lines",
    "recall",
    "trace",
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


def effects(found: "Effects") -> go.Figure:
    """A heat map of two axes, or bars with intervals over one."""
    title = f"{found.provenance.behaviour}: {found.site}, {found.direction}, n={found.n_prompts}"
    if found.unfinished:
        title += f", {found.unfinished} of {len(found.names)} places unfinished"
    if len(found.axes) == 1:
        return bars(
            found.names,
            found.values.tolist(),
            None if found.low is None else found.low.tolist(),
            None if found.high is None else found.high.tolist(),
            title=title,
            unit=found.unit,
        )
    if found.axes == ("layer", "head"):
        return heads(found.values, title=title, unit=found.unit)
    rows = found.values.flatten(0, -2)
    width = rows.shape[1]
    down = [name.partition("@")[0] for name in found.names[::width]]
    if found.values.ndim == 2:
        # The site is in the title.
        down = [re.split(r"[.HN]", name)[0] for name in down]
    return heat_map(rows.tolist(), down, _across(found), title=title, unit=found.unit)


def _across(found: "Effects") -> list[str]:
    """What the last axis holds: positions with their tokens, or numbers."""
    names = found.names[: found.values.shape[-1]]
    if found.axes[-1] != "pos":
        return [f"{found.axes[-1]} {i}" for i in range(len(names))]
    at = [name.rpartition("@")[2] for name in names]
    tokens = dict(enumerate(found.pos_labels))
    # The position in front keeps two equal tokens two columns.
    return [f"{pos} {tokens.get(int(pos), '') if pos.isdigit() else ''}".strip() for pos in at]


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


def recall(found: "Recall") -> go.Figure:
    """Recall against exposures: seen forms, the held-out form, and the guesser's baseline."""
    exposures = [str(level.exposures) for level in found.levels]
    figure = go.Figure()
    for kind, title in (("seen", "forms it was stated in"), ("paraphrase", "form held out")):
        shares = [getattr(level, kind) for level in found.levels]
        error = interval(
            [one.recall or 0.0 for one in shares],
            [one.low for one in shares],
            [one.high for one in shares],
        )
        figure.add_scatter(x=exposures, y=[one.recall for one in shares], error_y=error, name=title)
    figure.add_scatter(
        x=exposures,
        y=[level.baseline for level in found.levels],
        name="always the commonest value",
        line={"dash": "dot"},
    )
    figure.update_xaxes(type="category", title="documents that state the fact")
    figure.update_yaxes(range=[0, 1.02], title="share recalled")
    return framed(figure, "Recall of planted facts by exposure")


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


def trace(found: "Trace") -> go.Figure:
    """Three heat maps beside each other: what restoring one state brings back."""
    from plotly.subplots import make_subplots

    maps = {"one state": found.residual, "MLPs": found.mlps, "attention": found.attention}
    titles = [f"{name}, window {one.window}" for name, one in maps.items()]
    figure = make_subplots(cols=3, shared_yaxes=True, subplot_titles=titles)
    limit = max(float(one.values.nan_to_num().abs().max()) for one in maps.values()) or 1.0
    for column, one in enumerate(maps.values(), start=1):
        down = [f"L{layer}" for layer in range(one.values.shape[0])]
        cells = heat_map(one.values.tolist(), down, _across(one), title="", unit=one.unit).data[0]
        cells.update(zmin=-limit, zmax=limit, showscale=column == 3)
        figure.add_trace(cells, row=1, col=column)
    about = found.residual.provenance.behaviour
    title = f"{about}: restored states, subject {found.damage}"
    return framed(figure, title).update_layout(width=2 * WIDTH)
