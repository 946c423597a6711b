"""Figures. The one file that imports plotly.

Colours diverge around 0 (red works for the behaviour, blue against it), and an axis is labelled by
what it holds: tokens, heads, exposures.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor


if TYPE_CHECKING:
    import pandas

    from interp.effects import Effects
    from interp.recalling import Recall

__all__ = ["bars", "effects", "grouped_bars", "heads", "heat_map", "recall"]

# Pixels: three figures of a notebook fit on one screen.
WIDTH, HEIGHT = 680, 340


def effects(found: "Effects") -> go.Figure:
    """A heat map of two axes, or bars with intervals over one."""
    title = f"{found.provenance.behaviour}: {found.site}, {found.direction}"
    if len(found.axes) == 1:
        return bars(
            found.names,
            found.values.tolist(),
            None if found.low is None else found.low.tolist(),
            None if found.high is None else found.high.tolist(),
            title=title,
            unit=found.unit,
        )
    if found.axes[1] == "head":
        return heads(found.values, title=title, unit=found.unit)
    labels = found.pos_labels or [""] * found.values.shape[1]
    # The position in front keeps two equal tokens two columns.
    across = [f"{pos} {label}".strip() for pos, label in enumerate(labels)]
    down = [f"L{layer}" for layer in range(found.values.shape[0])]
    return heat_map(found.values.tolist(), down, across, title=title, unit=found.unit)


def heads(values: Float[Tensor, "layer head"], *, title: str, unit: str) -> go.Figure:
    """One number per head, the first layer at the bottom."""
    n_layers, n_heads = values.shape
    down, across = [f"L{i}" for i in range(n_layers)], [f"H{i}" for i in range(n_heads)]
    return heat_map(values.tolist(), down, across, title=title, unit=unit)


def heat_map(
    values: list[list[float]], down: list[str], across: list[str], *, title: str, unit: str
) -> go.Figure:
    """Values over rows and columns, the first row at the bottom."""
    limit = max((abs(value) for row in values for value in row), default=1.0) or 1.0
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
    return _framed(figure, title)


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
    error = None if low is None or high is None else _interval(values, low, high)
    figure = go.Figure(go.Bar(x=names, y=values, error_y=error))
    figure.update_yaxes(title=unit)
    return _framed(figure, title)


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
        error = _interval(values, rows[low].tolist(), rows[high].tolist())
        figure.add_bar(x=rows[across].tolist(), y=values, error_y=error, name=str(name))
    figure.update_xaxes(title=across)
    figure.update_yaxes(title=unit)
    return _framed(figure, title)


def recall(found: "Recall") -> go.Figure:
    """Recall against exposures: seen forms, the held-out form, and the guesser's baseline."""
    exposures = [str(level.exposures) for level in found.levels]
    figure = go.Figure()
    for kind, title in (("seen", "forms it was stated in"), ("paraphrase", "form held out")):
        shares = [getattr(level, kind) for level in found.levels]
        error = _interval(
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
    return _framed(figure, "Recall of planted facts by exposure")


def _interval(
    values: list[float], low: Sequence[float | None], high: Sequence[float | None]
) -> dict[str, object]:
    """Plotly's error bars are distances from the value; None draws none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if t is None else t - v for v, t in zip(values, high, strict=True)],
        "arrayminus": [None if b is None else v - b for v, b in zip(values, low, strict=True)],
    }


def _framed(figure: go.Figure, title: str) -> go.Figure:
    figure.update_layout(title=title, template="plotly_white", width=WIDTH, height=HEIGHT)
    return figure.update_layout(margin={"t": 48, "b": 40, "l": 60, "r": 20})
