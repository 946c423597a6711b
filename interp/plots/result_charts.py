"""Figures of whole analyses: probes and erasures, circuits, trajectories, agreement.

Drawn from the parts in `interp.plots`; these two files are the only ones that import plotly.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots import charts


if TYPE_CHECKING:
    from interp.attribution_patching import Agreement
    from interp.circuits import Circuit
    from interp.probing import Erasure, Estimate, Probe
    from interp.training_dynamics import Trajectory

__all__ = ["agreement", "circuit", "erasure", "probe", "trajectory"]


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
        return charts.heat_map(above, down, across, title=title, unit=unit)
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
    return charts.framed(figure, title)


def erasure(found: "Erasure") -> go.Figure:
    """The score of a behaviour: intact, with the label erased, and with a placebo."""
    scores = [arm.score for arm in found.arms]
    shown = _estimates([arm.name for arm in found.arms], scores)
    figure = go.Figure(go.Bar(x=shown["x"], y=shown["y"], error_y=shown["error_y"]))
    figure.update_yaxes(title=f"logit difference, n={found.n_prompts}")
    title = f"{found.behaviour} without {found.task} at {found.place} (rank {found.rank})"
    return charts.framed(figure, title)


def _estimates(x: Sequence[object], column: "Sequence[Estimate]") -> dict[str, object]:
    """Values with error bars, four digits each."""
    values = [round(one.value, 4) for one in column]
    low = [None if one.low is None else round(one.low, 4) for one in column]
    high = [None if one.high is None else round(one.high, 4) for one in column]
    return {"x": list(x), "y": values, "error_y": charts.interval(values, low, high)}


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
    return charts.framed(figure, about).update_layout(height=charts.HEIGHT + 60 * graph.n_layers)


def trajectory(found: "Trajectory", names: list[str], *, log: bool = True) -> go.Figure:
    """Numbers by step with their intervals, and a row of marks at each step that read documents."""
    figure = go.Figure()
    for index, name in enumerate(names):
        curve = found.curve(name)
        steps = [one.step for one in curve]
        shown = {"color": charts.COLOURS[index % len(charts.COLOURS)]}
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
            marker={"symbol": "line-ns-open", "color": charts.COLOURS[-1 - index %
            len(charts.COLOURS)]}, name=label, showlegend=False,
        )  # fmt: skip
    marked = 0.08 * len(found.readings)
    figure.update_layout(yaxis={"domain": [marked, 1.0]})
    if marked:
        figure.update_layout(yaxis2={"domain": [0.0, marked - 0.03], "anchor": "x"})
    axis = {"type": "log", "dtick": 1} if log else {}
    figure.update_xaxes(title="step" + (", from 1" if log else ""), **axis)
    return charts.framed(figure, f"{found.analysis} over run {found.run_id}")


def agreement(found: "Agreement") -> go.Figure:
    """Estimates across, exact effects with intervals up, and the line where they are equal."""
    exact = [abs(one) for one in found.exact] if found.absolute else list(found.exact)
    low, high = (found.low, found.high) if not found.absolute else (None, None)
    error = None if low is None or high is None else charts.interval(exact, low, high)
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
    return charts.framed(
        figure, f"{found.provenance.behaviour}: {found.n} places estimated and exact"
    )
