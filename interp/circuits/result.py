"""A circuit as a result: its edges, what they are worth, and what could have refuted them."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.circuits.faithfulness import Curve, Measured
from interp.circuits.graph import Graph
from interp.errors import CircuitError
from interp.patching import Provenance
from train import storage


__all__ = ["Checks", "Circuit"]

SCHEMA = "openbook.circuit/1"


@dataclass(frozen=True, eq=False)
class Checks:
    """What could have refuted the circuit; `interp.circuits.faithfulness` says what it means.

    Attributes:
        cpr: f over edges kept, strongest first, signed; its area is the CPR.
        cmd: The same by size; its area is the CMD, of abs(1 - f).
        again: How often each edge was chosen when the prompts were drawn again.
        exact: Edge -> its worth when it alone is cut, for the strongest.
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


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges that carry a behaviour.

    Attributes:
        graph: Of the model.
        worth: How far the metric falls, by the method's estimate, when an edge is cut; a mean over
            the prompts that chose. Above 0 it works for the behaviour.
        kept: The edges of the circuit; all lie on paths from the input to the logits.
        method: eap-ig, eap or exact.
        steps: Of eap-ig.
        selection: greedy or top.
        signed: Whether only edges that work for the behaviour were sought.
        n_asked: Edges before pruning.
        full: Mean metric of the full model on the prompts that judge.
        empty: Of the empty circuit, which is the corrupt run.
        faithfulness: (m(C) - m(empty)) / (m(full) - m(empty)).
        n_chose: Distinct prompts that chose the edges.
        held_out: Whether other prompts judge them.
        metric: Its name.
        unit: Of `worth`, `full` and `empty`.
        provenance: What it was computed from.
        checks: None when they were not asked for.
        notes: What a reader should know.
    """

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

    def __repr__(self) -> str:
        return (
            f"Circuit({self.provenance.behaviour!r}, {len(self.edges)} of {self.graph.n_edges} "
            f"edges, {len(self.nodes)} nodes; faithfulness {self.faithfulness})"
        )

    @property
    def edges(self) -> list[str]:
        """Its edges, strongest first."""
        order = self.worth.abs().argsort(descending=True, stable=True)
        return [self.graph.edges[e] for e in order[self.kept[order]].tolist()]

    @property
    def nodes(self) -> list[str]:
        """Its nodes, in the order of the forward pass."""
        named = {self.graph.sources[s] for s in self.graph.ends[self.kept, 0].tolist()}
        return [name for name in self.graph.nodes if name in named or name == "logits"]

    def __getitem__(self, edge: str) -> float:
        return self.worth[self.graph.index(edge)].item()

    def to_frame(self) -> Any:
        """A pandas row per edge: ends, worth, whether kept, how often chosen again, exact worth."""
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

    def plot(self) -> Any:
        """The nodes layer by layer and the edges between them."""
        return _figure(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        content |= {name: asdict(content[name]) for name in ("graph", "faithfulness", "provenance")}
        content |= {name: content[name].tolist() for name in ("worth", "kept")}
        if self.checks:
            parts = {one.name: getattr(self.checks, one.name) for one in fields(self.checks)}
            content["checks"] = {
                **{
                    k: asdict(v) if isinstance(v, Measured | Curve) else v for k, v in parts.items()
                },
                "again": self.checks.again.tolist(),
                "exact": {edge: asdict(one) for edge, one in self.checks.exact.items()},
            }
        return {"schema": SCHEMA, **content, "notes": list(self.notes), "edges": self.edges}

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` and every later command accepts."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read what `save` wrote.

        Raises:
            DamagedError: The file is not what its seal says.
            CircuitError: The file holds something else.
        """
        content = storage.read_sealed(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise CircuitError(f"{path}: is no {SCHEMA!r}; write it with circuit.save")
        del content["digest"], content["edges"]
        content["graph"] = Graph(**content["graph"])
        content["provenance"] = Provenance(**content["provenance"])
        content["faithfulness"] = Measured(**content["faithfulness"])
        content["worth"], content["kept"] = (torch.tensor(content[k]) for k in ("worth", "kept"))
        content["notes"] = tuple(content["notes"])
        content["checks"] = content["checks"] and _checks(content["checks"])
        return cls(**content)


def _checks(content: dict[str, Any]) -> Checks:
    made: dict[str, Any] = {}
    for name, one in content.items():
        if name in ("cpr", "cmd"):
            lists = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
            made[name] = Curve(**{**lists, "area": Measured(**one["area"])})
        elif name == "again":
            made[name] = torch.tensor(one)
        elif name == "exact":
            made[name] = {edge: Measured(**value) for edge, value in one.items()}
        else:
            made[name] = one and Measured(**one)
    return Checks(**made)


def _figure(found: Circuit, k: int = 60) -> Any:
    """The nodes of a circuit layer by layer, and its k strongest edges; red works for it."""
    from interp import plots  # plotly takes a second

    graph, edges = found.graph, found.edges[:k]
    across = 2.0 * graph.n_heads
    spots = {"input": (across / 2, 0), "logits": (across / 2, 2 * graph.n_layers + 1)}
    for layer in range(graph.n_layers):
        for head in range(graph.n_heads):
            spots[f"a{layer}.h{head}"] = (2 * head, 2 * layer + 1)
        # Beside the heads, so that no edge from the middle hides behind it.
        spots[f"m{layer}"] = (across + 2, 2 * layer + 2)
    figure, ends = plots.figure(), []
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
    return plots.framed(figure, about).update_layout(height=plots.HEIGHT + 60 * graph.n_layers)
