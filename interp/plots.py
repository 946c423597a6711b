"""Figures. The one file that imports plotly.

Colours diverge around 0 (red works for the behaviour, blue against it), and an axis is labelled by
what it holds: tokens, heads, exposures.
"""

from typing import TYPE_CHECKING

import plotly.graph_objects as go


if TYPE_CHECKING:
    from interp.effects import Effects
    from interp.recalling import Recall

__all__ = ["bars", "effects", "heat_map", "recall"]


def effects(found: "Effects") -> go.Figure:
    """A heat map of two axes, or bars with intervals over one."""
    title = f"{found.provenance.behaviour}: {found.site}, {found.direction}"
    if len(found.axes) == 1:
        return bars(
            found.names,
            found.values.tolist(),
            found.low.tolist(),
            found.high.tolist(),
            title=title,
            unit=found.unit,
        )
    across = [f"H{head}" for head in range(found.values.shape[1])]
    if found.axes[1] == "pos":
        labels = found.pos_labels or [""] * found.values.shape[1]
        # The position in front keeps two equal tokens two columns.
        across = [f"{pos} {label}".strip() for pos, label in enumerate(labels)]
    down = [f"L{layer}" for layer in range(found.values.shape[0])]
    return heat_map(found.values.tolist(), down, across, title=title, unit=found.unit)


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
    figure.update_layout(title=title, template="plotly_white")
    figure.update_xaxes(type="category")
    return figure


def bars(
    names: list[str],
    values: list[float],
    low: list[float],
    high: list[float],
    *,
    title: str,
    unit: str,
) -> go.Figure:
    """Values with their intervals."""
    error = {
        "type": "data",
        "symmetric": False,
        "array": [top - value for value, top in zip(values, high, strict=True)],
        "arrayminus": [value - bottom for value, bottom in zip(values, low, strict=True)],
    }
    figure = go.Figure(go.Bar(x=names, y=values, error_y=error))
    figure.update_layout(title=title, template="plotly_white", yaxis_title=unit)
    return figure


def recall(found: "Recall") -> go.Figure:
    """Recall against exposures: seen forms, the held-out form, and the guesser's baseline."""
    exposures = [str(level.exposures) for level in found.levels]
    figure = go.Figure()
    for kind, title in (("seen", "forms it was stated in"), ("paraphrase", "form held out")):
        shares = [getattr(level, kind) for level in found.levels]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [one.high - (one.recall or 0.0) for one in shares],
            "arrayminus": [(one.recall or 0.0) - one.low for one in shares],
        }
        figure.add_scatter(x=exposures, y=[one.recall for one in shares], error_y=error, name=title)
    figure.add_scatter(
        x=exposures,
        y=[level.baseline for level in found.levels],
        name="always the commonest value",
        line={"dash": "dot"},
    )
    figure.update_layout(
        title="Recall of planted facts by exposure",
        template="plotly_white",
        xaxis_title="documents that state the fact",
        yaxis_title="share recalled",
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[0, 1.02])
    return figure
