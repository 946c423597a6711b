"""Figures. The one file that imports plotly.

Colours diverge around 0 (red works for the behaviour, blue against it), and an axis is labelled by
what it holds: tokens, heads, exposures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from interp import figure_files


if TYPE_CHECKING:
    import pandas

    from interp.agreement import Agreement
    from interp.averages import Average
    from interp.circuit_results import Circuit
    from interp.classifying import Estimate
    from interp.effects import Effects
    from interp.erasures import Erasure
    from interp.probes import Probe
    from interp.recalling import Recall
    from interp.tracing import Trace
    from interp.trajectories import Trajectory

__all__ = [
    "agreement",
    "bars",
    "circuit",
    "effects",
    "erasure",
    "grouped_bars",
    "heads",
    "heat_map",
    "probe",
    "recall",
    "trajectory",
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
    return figure_files.write(figure, path)


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
    # Four digits, which is more than an interval leaves certain, and half the size of a file.
    for trace in figure.data:
        for name in ("y", "z"):
            if (values := getattr(trace, name, None)) is not None:
                setattr(trace, name, _shortened(values))
    figure.update_layout(title=title, template="plotly_white", width=WIDTH, height=HEIGHT)
    return figure.update_layout(margin={"t": 48, "b": 40, "l": 60, "r": 20})


def _shortened(values: Any) -> Any:
    """Fractions with four significant digits, at any depth; all else as it is."""
    if isinstance(values, float):
        return float(f"{values:.4g}")
    if isinstance(values, str | int | None):
        return values
    return [_shortened(one) for one in (values.tolist() if hasattr(values, "tolist") else values)]


def probe(found: "Probe") -> go.Figure:
    """Accuracy and its controls over layers; over positions too, a heat map above the baseline."""
    title = f"{found.task}: {found.site}, n={found.n}, {len(found.classes)} classes"
    layers = sorted({cell.layer for cell in found.cells})
    places = sorted({cell.pos for cell in found.cells if cell.pos is not None})
    if places:
        there = {(cell.layer, cell.pos): cell.accuracy.value for cell in found.cells}
        above = [
            # An interrupted probe lacks the last cells.
            [round(there.get((layer, pos), found.baseline) - found.baseline, 4) for pos in places]
            for layer in layers
        ]
        down, across = [f"L{layer}" for layer in layers], [str(pos) for pos in places]
        unit = f"accuracy above {found.baseline:.3f}"
        return heat_map(above, down, across, title=title, unit=unit)
    figure = go.Figure()
    names = {"accuracy": "accuracy", "unseen": f"unseen {found.type_of}", "control": "control task"}
    names |= {"untrained": "untrained", "untrained_unseen": f"untrained, unseen {found.type_of}"}
    for field, name in names.items():
        column = [getattr(cell, field) for cell in found.cells]
        if None not in column:
            figure.add_scatter(**_estimates(layers, column), name=name)
    figure.add_hline(y=found.baseline, line_dash="dot", annotation_text="commonest label")
    figure.update_xaxes(title="layer", dtick=1)
    figure.update_yaxes(range=[0, 1.02], title="share of cases right")
    return _framed(figure, title)


def erasure(found: "Erasure") -> go.Figure:
    """The score of a behaviour: intact, with the label erased, and with a placebo."""
    scores = [arm.score for arm in found.arms]
    shown = _estimates([arm.name for arm in found.arms], scores)
    figure = go.Figure(go.Bar(x=shown["x"], y=shown["y"], error_y=shown["error_y"]))
    figure.update_yaxes(title=f"logit difference, n={found.n_prompts}")
    title = f"{found.behaviour} without {found.task} at {found.place} (rank {found.rank})"
    return _framed(figure, title)


def _estimates(x: Sequence[object], column: "Sequence[Estimate]") -> dict[str, object]:
    """Values with error bars, four digits each."""
    values = [round(one.value, 4) for one in column]
    low = [None if one.low is None else round(one.low, 4) for one in column]
    high = [None if one.high is None else round(one.high, 4) for one in column]
    return {"x": list(x), "y": values, "error_y": _interval(values, low, high)}


def curves(
    x: Sequence[object], series: "dict[str, Average]", *, title: str, unit: str, across: str = ""
) -> go.Figure:
    """Lines of means with their intervals, one a name."""
    figure = go.Figure()
    for name, found in series.items():
        figure.add_scatter(**_averages(x, found), name=name)
    figure.update_xaxes(title=across)
    figure.update_yaxes(title=unit)
    return _framed(figure, title)


def columns(
    names: Sequence[str], series: "dict[str, Average]", *, title: str, unit: str
) -> go.Figure:
    """Bars of means with their intervals, side by side."""
    figure = go.Figure()
    for name, found in series.items():
        figure.add_bar(**_averages(names, found), name=name)
    figure.update_yaxes(title=unit)
    return _framed(figure, title)


def _averages(x: Sequence[object], found: "Average") -> dict[str, object]:
    """Means with error bars, four digits each."""
    values, low, high = (
        None if t is None else [round(v, 4) for v in t.tolist()]
        for t in (found.values, found.low, found.high)
    )
    none = [None] * len(x)
    error = _interval(values or [], low or none, high or none)
    return {"x": list(x), "y": values, "error_y": error}


def circuit(found: "Circuit", k: int = 60) -> go.Figure:
    """The nodes of a circuit layer by layer, and its k strongest edges; red works for it."""
    graph, edges = found.graph, found.edges[:k]
    across = 2.0 * graph.n_heads
    spots = {"input": (across / 2, 0), "logits": (across / 2, 2 * graph.n_layers + 1)}
    for layer in range(graph.n_layers):
        for head in range(graph.n_heads):
            spots[f"a{layer}.h{head}"] = (2 * head, 2 * layer + 1)
        # Beside the heads, so that no edge from the middle hides behind it.
        spots[f"m{layer}"] = (across + 2, 2 * layer + 2)
    figure, ends = go.Figure(), []
    strongest = max((abs(found[edge]) for edge in edges), default=1.0) or 1.0
    lines: dict[tuple[str, float], list[tuple[float, float] | tuple[None, None]]] = {}
    for edge in edges:
        source, _, reader = edge.partition("->")
        start, stop = spots[source], spots[reader.partition("<")[0]]
        colour = "#b2182b" if found[edge] > 0 else "#2166ac"
        # Three widths, and so six lines in the file however many edges there are.
        width = 1.0 + 2 * round(2 * abs(found[edge]) / strongest)
        lines.setdefault((colour, width), []).extend([start, stop, (None, None)])
        middle = ((start[0] + stop[0]) / 2, (start[1] + stop[1]) / 2)
        ends.append((*middle, f"{edge} {found[edge]:.4g}"))
    for (colour, width), points in lines.items():
        x, y = zip(*points, strict=True)
        line = {"color": colour, "width": width}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")
    if ends:
        x, y, text = zip(*ends, strict=True)
        figure.add_scatter(x=x, y=y, hovertext=text, hoverinfo="text", mode="markers", opacity=0)
    x, y = zip(*(spots[node] for node in found.nodes), strict=True)
    figure.add_scatter(x=x, y=y, text=found.nodes, mode="text", hoverinfo="skip")
    figure.update_layout(showlegend=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    shown = f"{len(edges)} of {len(found.edges)} edges"
    about = f"{found.provenance.behaviour}: {shown}, faithfulness {found.faithfulness}"
    return _framed(figure, about).update_layout(height=HEIGHT + 60 * graph.n_layers)


def trajectory(found: "Trajectory", names: list[str], *, log: bool = True) -> go.Figure:
    """Numbers by step with their intervals, and a row of marks at each step that read documents."""
    figure = go.Figure()
    for index, name in enumerate(names):
        curve = found.curve(name)
        steps = [one.step for one in curve]
        shown = {"color": COLOURS[index % len(COLOURS)]}
        bounds = [(one.step, one.low, one.high) for one in curve if one.low is not None]
        figure.add_scatter(
            x=[step for step, _, _ in bounds] + [step for step, _, _ in reversed(bounds)],
            y=[round(high or 0.0, 4) for _, _, high in bounds]
            + [round(low or 0.0, 4) for _, low, _ in reversed(bounds)],
            fill="toself", opacity=0.2, line={**shown, "width": 0}, mode="lines",
            hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
        values = [round(one.value, 4) for one in curve]
        figure.add_scatter(x=steps, y=values, name=name, line=shown, legendgroup=name)
    for index, (label, steps) in enumerate(found.readings.items()):
        figure.add_scatter(
            x=sorted(set(steps)), y=[label] * len(set(steps)), yaxis="y2", mode="markers",
            marker={"symbol": "line-ns-open", "color": COLOURS[-1 - index % len(COLOURS)]},
            name=label, showlegend=False,
        )  # fmt: skip
    marked = 0.08 * len(found.readings)
    figure.update_layout(yaxis={"domain": [marked, 1.0]})
    if marked:
        figure.update_layout(yaxis2={"domain": [0.0, marked - 0.03], "anchor": "x"})
    axis = {"type": "log", "dtick": 1} if log else {}
    figure.update_xaxes(title="step" + (", from 1" if log else ""), **axis)
    return _framed(figure, f"{found.analysis} over run {found.run_id}")


def trace(found: "Trace") -> go.Figure:
    """Three heat maps beside each other: what restoring one state brings back."""
    from plotly.subplots import make_subplots

    maps = {"one state": found.residual, "MLPs": found.mlps, "attention": found.attention}
    titles = [f"{name}, window {one.window}" for name, one in maps.items()]
    figure = make_subplots(cols=3, shared_yaxes=True, subplot_titles=titles)
    limit = max(float(one.values.nan_to_num().abs().max()) for one in maps.values()) or 1.0
    for column, one in enumerate(maps.values(), start=1):
        labels = one.pos_labels or [""] * one.values.shape[1]
        across = [f"{pos} {label}".strip() for pos, label in enumerate(labels)]
        down = [f"L{layer}" for layer in range(one.values.shape[0])]
        cells = heat_map(one.values.tolist(), down, across, title="", unit=one.unit).data[0]
        cells.update(zmin=-limit, zmax=limit, showscale=column == 3)
        figure.add_trace(cells, row=1, col=column)
    about = found.residual.provenance.behaviour
    title = f"{about}: restored states, subject {found.damage}"
    return _framed(figure, title).update_layout(width=2 * WIDTH)


def agreement(found: "Agreement") -> go.Figure:
    """Estimates across, exact effects with intervals up, and the line where they are equal."""
    exact = [abs(one) for one in found.exact] if found.absolute else list(found.exact)
    low, high = (found.low, found.high) if not found.absolute else (None, None)
    error = None if low is None or high is None else _interval(exact, low, high)
    ends = [min([*found.estimated, *exact, 0.0]), max([*found.estimated, *exact, 0.0])]
    figure = go.Figure(go.Scatter(x=ends, y=ends, mode="lines", line={"dash": "dot"}))
    figure.add_scatter(
        x=list(found.estimated),
        y=exact,
        error_y=error,
        mode="markers",
        text=list(found.places),
        hovertemplate="%{text}: estimated %{x:.3f}, exact %{y:.3f}<extra></extra>",
    )
    figure.update_xaxes(title="estimated")
    figure.update_yaxes(title=f"exact, {found.unit}")
    figure.update_layout(showlegend=False)
    return _framed(figure, f"{found.provenance.behaviour}: {found.n} places estimated and exact")
