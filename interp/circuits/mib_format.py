"""Circuit files in the format of MIB, read and written without loss.

A file is JSON with `cfg` (sizes), `nodes` (name -> in_graph) and `edges` (name -> score, in_graph),
the format that the circuit track of MIB accepts as a submission (Mueller et al. 2025,
https://arxiv.org/abs/2504.13151). Names and order are those of `interp.circuits.graph`: 32,491
edges for GPT-2 small. The score is the worth of an edge. The track's signed curve (CPR) takes the
largest scores first, so a score above 0 must mean that the edge works for the behaviour. The
published example of MIB has the opposite sign (the IOI name mover a9.h9->logits has -0.28), and a
file does not tell which sign it uses.
"""

import json
import lzma
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.circuits.graph import Graph
from interp.circuits.result import Circuit
from interp.errors import CircuitError
from train import storage
from train.errors import DamagedError
from train.short_repr import short_repr


__all__ = ["EdgeFile", "open_circuit", "read_mib", "write_mib"]

SIZES = ("n_layers", "n_heads", "d_model")


@dataclass(frozen=True, eq=False)
class EdgeFile:
    """Content of a circuit file in the format of MIB.

    Attributes:
        graph: Graph of the model that `cfg` describes.
        worth: Scores of all edges, float64 as in JSON; nan for edges without a score, as in files
            that record membership only.
        kept: True for edges that are in the circuit.
        nodes: Nodes that the file lists as in the circuit; MIB counts `logits` as one.
    """

    graph: Graph
    worth: Float[Tensor, " edge"]
    kept: Bool[Tensor, " edge"]
    nodes: tuple[str, ...]

    __repr__ = short_repr

    @classmethod
    def of(cls, circuit: Circuit) -> "EdgeFile":
        """Return the file content of a circuit."""
        return cls(circuit.graph, circuit.worth.double(), circuit.kept, tuple(circuit.nodes))

    def to_dict(self) -> dict[str, object]:
        """Return the content as plain values, in MIB's order."""
        inside, graph = set(self.nodes), self.graph
        sizes = {"n_layers": graph.n_layers, "n_heads": graph.n_heads}
        rows = zip(graph.edges, self.worth.tolist(), self.kept.tolist(), strict=True)
        return {
            "cfg": {**sizes, "parallel_attn_mlp": graph.parallel, "d_model": graph.d_model},
            "nodes": {name: {"in_graph": name in inside} for name in graph.nodes},
            "edges": {
                # nan means that there is no score; it is left out, because JSON has no nan.
                name: {"in_graph": kept} if score != score else {"score": score, "in_graph": kept}
                for name, score, kept in rows
            },
        }


def write_mib(path: str | Path, content: EdgeFile | Circuit) -> None:
    """Write the file on one line, as MIB does, compressed if its name ends in .xz.

    Examples:
        >>> circuit = circuits.find(model, ioi, n_edges=60, checked=False)
        >>> circuits.write_mib(folder / "ioi.json", circuit)
        >>> torch.equal(circuits.read_mib(folder / "ioi.json").kept, circuit.kept)
        True
    """
    made = content if isinstance(content, EdgeFile) else EdgeFile.of(content)
    data = json.dumps(made.to_dict(), allow_nan=False).encode()
    path = Path(path)
    storage.write_bytes(path, lzma.compress(data) if path.suffix == ".xz" else data)


def read_mib(path: str | Path) -> EdgeFile:
    """Read a file in MIB's format, compressed (.xz) or not.

    Raises:
        CircuitError: The file is not in this format: a key is missing, a name is unknown, or an
            edge is missing.

    Examples:
        >>> circuit = circuits.find(model, ioi, n_edges=60, checked=False)
        >>> circuits.write_mib(folder / "ioi.json.xz", circuit)
        >>> circuits.read_mib(folder / "ioi.json.xz").graph == circuit.graph
        True
    """
    path = Path(path)
    content = _parsed(path)
    with storage.reading(path, CircuitError):
        return _edges(path, content)


def _edges(path: Path, content: dict[str, dict]) -> EdgeFile:
    cfg = content["cfg"]
    wrong = [key for key in SIZES if type(cfg.get(key)) is not int or not 0 < cfg[key] < 100_000]
    if wrong:
        raise CircuitError(f"{path}: cfg has {wrong[0]} {cfg.get(wrong[0])!r}; a size is needed")
    if not isinstance(parallel := cfg.get("parallel_attn_mlp", False), bool):
        raise CircuitError(f"{path}: cfg has parallel_attn_mlp {parallel!r}, not true or false")
    graph = Graph(*(cfg[key] for key in SIZES), parallel=parallel)
    expected = sum(3 * graph.n_heads * graph.n_before_heads(i) for i in range(graph.n_layers))
    if len(content["edges"]) < expected:
        raise CircuitError(f"{path}: {len(content['edges'])} edges, fewer than its cfg asks for")
    for kind, known in (("nodes", graph.nodes), ("edges", graph.edges)):
        odd = sorted(set(content[kind]) ^ set(known))
        if odd:
            raise CircuitError(
                f"{path}: {len(content[kind])} {kind} where a model of {graph.n_layers} layers of "
                f"{graph.n_heads} heads has {len(known)}; the first that differs is {odd[0]!r}"
            )
    edges = [content["edges"][name] for name in graph.edges]
    return EdgeFile(
        graph=graph,
        worth=torch.tensor([_number(path, one) for one in edges], dtype=torch.float64),
        kept=torch.tensor([_inside(path, one) for one in edges]),
        nodes=tuple(name for name in graph.nodes if _inside(path, content["nodes"][name])),
    )


def open_circuit(path: str | Path) -> EdgeFile:
    """Read the edges of a file in MIB's format, or of a circuit that `Circuit.save` wrote.

    Raises:
        CircuitError: The file is neither.
        DamagedError: A saved circuit does not match its seal.

    Examples:
        >>> circuit = circuits.find(model, ioi, n_edges=60, checked=False)
        >>> circuit.save(folder / "ioi.json")
        >>> torch.equal(circuits.open_circuit(folder / "ioi.json").kept, circuit.kept)
        True
    """
    content = _json(Path(path))
    if isinstance(content, dict) and "schema" in content:
        return EdgeFile.of(Circuit.load(path))
    return read_mib(path)


def _json(path: Path) -> object:
    try:
        return storage.read_foreign_json(path)
    except DamagedError as error:
        raise CircuitError(str(error)) from None


def _parsed(path: Path) -> dict[str, dict]:
    content = _json(path)
    parts = ("cfg", "nodes", "edges")
    if not isinstance(content, dict) or any(
        not isinstance(content.get(part), dict) for part in parts
    ):
        raise CircuitError(f"{path}: is no circuit file; it needs the keys cfg, nodes and edges")
    return content


def _number(path: Path, edge: object) -> float:
    score = edge.get("score", float("nan")) if isinstance(edge, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise CircuitError(f"{path}: an edge holds {edge!r}; it needs a score that is a number")
    return float(score)


def _inside(path: Path, part: object) -> bool:
    inside = part.get("in_graph") if isinstance(part, dict) else part
    if not isinstance(inside, bool):
        raise CircuitError(f"{path}: {part!r} says not whether it is in the graph; in_graph does")
    return inside
