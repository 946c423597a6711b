"""Circuit as a result: its edges, their worth, and the checks and controls that can refute it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import plots
from interp.circuits.ablations import AblationTest
from interp.circuits.faithfulness import Curve, Measured
from interp.circuits.graph import Graph
from interp.errors import CircuitError, InterpError
from interp.results import Provenance, Result
from train import storage
from train.html_panel import ROWS, Panel, panel_of
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pandas

__all__ = ["Checks", "Circuit"]

SCHEMA = "openbook.circuit/1"


@dataclass(frozen=True, eq=False)
class Checks:
    """Checks and controls of a circuit; `interp.circuits.faithfulness` and `.controls` define them.

    Attributes:
        complement: Faithfulness of the model without the circuit's edges.
        completeness: Mean difference between removing a node from the circuit and from the model.
        minimality: Share of the circuit's edges that are needed.
        cpr: f over the share of edges kept, largest signed worth first; its area is the CPR.
        cmd: f over the share of edges kept, largest absolute worth first; its area is the CMD, that
            of abs(1 - f).
        random_init: Control with untrained models, as a share of the trained model's difference.
        own_scale: The same on their own scale; None if no untrained model tells clean from corrupt.
        random_circuits: Control with random circuits of the same size.
        stability: Overlap with circuits found on resampled prompts; None with a single prompt.
        agreement: Rank correlation of estimated and exact worth; None for fewer than three edges.
        again: Share of resamplings of the prompts in which each edge was selected.
        exact: Exact worth of the circuit's strongest edges, each ablated alone, by name, on the
            prompts that chose them: as the largest of many they are partly so by chance.
        sizes: Tests under each ablation of circuits of other sizes, selected in the same way.
    """

    complement: Measured
    completeness: Measured
    minimality: Measured
    cpr: Curve
    cmd: Curve
    random_init: Measured
    random_circuits: Measured
    stability: Measured | None
    agreement: Measured | None
    again: Float[Tensor, " edge"]
    exact: dict[str, Measured]
    own_scale: Measured | None = None
    sizes: tuple[tuple[AblationTest, ...], ...] = ()

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class Circuit(Result):
    """Edges that carry a behaviour.

    Attributes:
        graph: Graph of the model.
        worth: Worth of every edge of the graph: the fall of the metric if the edge is ablated, as
            estimated by the method, mean over the choosing prompts. Above 0 the edge works for the
            behaviour.
        kept: True for the edges of the circuit, all of which are on paths from input to logits.
        method: Method that scored the edges: eap-ig, eap or exact.
        steps: Steps of EAP-IG.
        selection: Selection of edges: greedy or top.
        signed: True if edges were ranked by worth, False if by its absolute value.
        n_asked: Number of edges before pruning.
        full: Mean metric of the full model on the judging prompts.
        empty: Mean metric of the empty circuit, which is the corrupt run, on the judging prompts.
        faithfulness: (m(C) - m(empty)) / (m(full) - m(empty)) on the judging prompts.
        n_chose: Number of distinct prompts on which the edges were chosen.
        held_out: True if the judging prompts are others than the choosing ones.
        metric: Name of the metric.
        unit: Unit of `worth`, `full` and `empty`.
        provenance: Model, behaviour and software that the circuit was computed from.
        ablations: Tests of the circuit on the judging prompts under several ablations.
        checks: Checks and controls; None if they were not run.
        notes: Remarks for the reader.
    """

    schema: ClassVar[str] = SCHEMA
    refusal: ClassVar[type[InterpError]] = CircuitError
    meaning: ClassVar[str] = (
        "A circuit shows edges that suffice for the difference between clean and corrupt "
        "prompts when all others are ablated; it does not show that no other edges would, "
        "what they do with what both prompts share, or the same under an ablation that was "
        "not tested."
    )

    graph: Graph
    worth: Float[Tensor, " edge"]
    kept: Bool[Tensor, " edge"]
    method: str
    steps: int
    selection: str
    signed: bool
    n_asked: int
    full: float
    empty: float
    faithfulness: Measured
    n_chose: int
    held_out: bool
    metric: str
    unit: str
    provenance: Provenance
    checks: Checks | None = None
    notes: tuple[str, ...] = ()
    ablations: tuple[AblationTest, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Circuit({self.provenance.behaviour!r}, {len(self.edges)} of {self.graph.n_edges} "
            f"edges, {len(self.nodes)} nodes; faithfulness {self.faithfulness})"
        )

    @property
    def edges(self) -> list[str]:
        """Names of the circuit's edges, largest absolute worth first."""
        order = self.worth.abs().argsort(descending=True, stable=True)
        return [self.graph.edges[e] for e in order[self.kept[order]].tolist()]

    @property
    def nodes(self) -> list[str]:
        """Names of the circuit's nodes, in forward order."""
        named = {self.graph.sources[s] for s in self.graph.ends[self.kept, 0].tolist()}
        return [name for name in self.graph.nodes if name in named or name == "logits"]

    def __getitem__(self, edge: str) -> float:
        return self.worth[self.graph.index(edge)].item()

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per edge of the graph: ends, worth, whether it is kept, and n.

        With checks, also how often it was selected on resampled prompts, and its exact worth.
        """
        import pandas

        names = self.graph.edges
        frame = pandas.DataFrame([name.split("->") for name in names], columns=["source", "reader"])
        frame.insert(0, "edge", list(names))
        frame["worth"], frame["kept"] = self.worth.tolist(), self.kept.tolist()
        frame["n"] = self.n_chose
        if self.checks:
            exact = [self.checks.exact.get(name) for name in names]
            frame["chosen_again"] = self.checks.again.tolist()
            for column in ("value", "low", "high"):
                found = [None if one is None else getattr(one, column) for one in exact]
                frame["exact" if column == "value" else f"exact_{column}"] = found
        return frame

    def show(self, n: int = ROWS) -> Panel:
        """Return what a notebook shows: the n edges of the circuit of largest absolute worth."""
        frame = self.to_frame().set_index("edge", drop=False).loc[self.edges]
        facts: tuple[tuple[str, object], ...] = (
            ("edges", f"{len(self.edges):,} of {self.graph.n_edges:,}"),
            ("faithfulness", str(self.faithfulness)),
            ("judged on", "held-out prompts" if self.held_out else "the choosing prompts"),
            ("n_chose", self.n_chose),
            ("method", self.method),
            ("selection", self.selection),
            ("unit", self.unit),
        )
        if (checks := self.checks) is None:
            facts += (("controls", "none"),)
        else:
            facts += (("random circuits", str(checks.random_circuits)),)
            facts += (("untrained models", str(checks.random_init)),)
        return panel_of(self, n, frame=frame.drop(columns="kept"), facts=facts)

    def plot(self) -> "plots.Figure":
        """Plot the nodes layer by layer and the strongest edges between them."""
        return _figure(self)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        content |= {name: asdict(content[name]) for name in ("graph", "faithfulness", "provenance")}
        if not self.graph.parallel:
            del content["graph"]["parallel"]  # so that files of other models stay as they were
        content |= {name: content[name].tolist() for name in ("worth", "kept")}
        if self.checks:
            parts = {one.name: getattr(self.checks, one.name) for one in fields(self.checks)}
            content["checks"] = {
                **{
                    k: asdict(v) if isinstance(v, Measured | Curve) else v for k, v in parts.items()
                },
                "again": self.checks.again.tolist(),
                "exact": {edge: asdict(one) for edge, one in self.checks.exact.items()},
                "sizes": [[asdict(test) for test in tests] for tests in self.checks.sizes],
            }
            if not self.checks.sizes:  # so that files of earlier versions stay as they were
                for name in ("own_scale", "sizes"):
                    del content["checks"][name]
        content["ablations"] = [asdict(test) for test in self.ablations]
        if not self.ablations:
            del content["ablations"]
        return {"schema": SCHEMA, **content, "notes": list(self.notes), "edges": self.edges}

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Circuit":
        """Return the result that `to_dict` turned into plain values."""
        del content["edges"]
        content["graph"] = Graph(**content["graph"])
        content["provenance"] = Provenance(**content["provenance"])
        content["faithfulness"] = Measured(**content["faithfulness"])
        content["worth"] = torch.tensor(content["worth"], dtype=torch.float32)
        content["kept"] = torch.tensor(content["kept"])
        content["notes"] = tuple(content["notes"])
        content["checks"] = content["checks"] and _checks(content["checks"])
        content["ablations"] = _tests(content.get("ablations", ()))
        return cls(**content)


def _tests(content: Iterable[storage.JsonObject]) -> tuple[AblationTest, ...]:
    found = []
    for one in content:
        numbers: dict[str, Any] = {
            key: Measured(**value) if isinstance(value, dict) else value
            for key, value in one.items()
        }
        found.append(AblationTest(**numbers))
    return tuple(found)


def _checks(content: storage.JsonObject) -> Checks:
    made: dict[str, Any] = {}
    for name, one in content.items():
        if name in ("cpr", "cmd"):
            lists = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
            made[name] = Curve(**{**lists, "area": Measured(**one["area"])})
        elif name == "again":
            made[name] = torch.tensor(one, dtype=torch.float32)
        elif name == "exact":
            made[name] = {edge: Measured(**value) for edge, value in one.items()}
        elif name == "sizes":
            made[name] = tuple(map(_tests, one))
        else:
            made[name] = one and Measured(**one)
    return Checks(**made)


def _figure(found: Circuit, k: int = 60) -> "plots.Figure":
    """Draw the nodes of a circuit layer by layer, and its k strongest edges.

    Edges that work for the behaviour are red, those against it blue.
    """
    graph, edges = found.graph, found.edges[:k]
    across = 2.0 * graph.n_heads
    spots = {"input": (across / 2, 0), "logits": (across / 2, 2 * graph.n_layers + 1)}
    for layer in range(graph.n_layers):
        for head in range(graph.n_heads):
            spots[f"a{layer}.h{head}"] = (2 * head, 2 * layer + 1)
        # To the right of the heads, so that it covers no edge between other nodes.
        spots[f"m{layer}"] = (across + 2, 2 * layer + 2)
    figure, ends = plots.figure(), []
    strongest = max((abs(found[edge]) for edge in edges), default=1.0) or 1.0
    lines: dict[tuple[str, float], list[tuple[float, float] | tuple[None, None]]] = {}
    for edge in edges:
        source, _, reader = edge.partition("->")
        start, stop = spots[source], spots[reader.partition("<")[0]]
        colour = "#b2182b" if found[edge] > 0 else "#2166ac"
        # Three widths and two colours: the figure has at most six line traces, however many edges.
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
    drawn = plots.framed(figure, about)
    drawn.update_layout(height=plots.HEIGHT + 60 * graph.n_layers)
    return drawn
