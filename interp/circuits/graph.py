"""Computational graph of a decoder: nodes, readers, and the edges between them.

Nodes are `input` (the embedding), every head `a{layer}.h{head}`, every MLP `m{layer}` and `logits`.
In a pre-norm decoder a node reads the *sum* of the outputs of all earlier nodes, and an edge is one
term of that sum: `a0.h1->m1`, `m0->a1.h0<k>`. A head has three readers: its queries, keys and
values. Names and order are those of MIB (Mueller et al. 2025, https://arxiv.org/abs/2504.13151).
With a parallel residual (GPT-NeoX) the MLP of a layer does not read the heads of its own layer.

`interp.circuits.edge_ablation` runs the model with some edges kept,
`interp.circuits.edge_attribution_patching` scores all edges, and `interp.circuits.edge_selection`
chooses among them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.components import HookedModel, read_weights
from interp.errors import CircuitError, ModelError
from train.errors import nearest
from train.model import attachments


__all__ = ["Graph", "graph_of"]

LETTERS = "qkv"


@dataclass(frozen=True)
class Graph:
    """Nodes and edges of a decoder, which are determined by its sizes.

    Attributes:
        parallel: True if attention and MLP of a layer read the same stream.
    """

    n_layers: int
    n_heads: int
    d_model: int
    parallel: bool = False

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Nodes that write to the residual stream: all but the logits, in forward order."""
        layers = range(self.n_layers)
        blocks = [[*(f"a{i}.h{h}" for h in range(self.n_heads)), f"m{i}"] for i in layers]
        return ("input", *(name for block in blocks for name in block))

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """All nodes, in forward order."""
        return (*self.sources, "logits")

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Inputs that read a sum: per layer all queries, keys, values and the MLP; then logits."""
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{h}<{x}>" for x in LETTERS for h in range(self.n_heads)]
            names.append(f"m{layer}")
        return (*names, "logits")

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Names of all edges, `source->reader`, in the order of MIB's files."""
        return tuple(f"{self.sources[s]}->{self.readers[r]}" for s, r in self.ends.tolist())

    @cached_property
    def ends(self) -> Int[Tensor, "edge 2"]:
        """Indices of the source (in `sources`) and the reader (in `readers`) of every edge."""
        # Readers of a layer: H queries, H keys, H values, and the MLP.
        per_layer = 3 * self.n_heads + 1
        ends = []
        for layer in range(self.n_layers):
            start = layer * per_layer
            heads = [start + x * self.n_heads + h for h in range(self.n_heads) for x in range(3)]
            before = self.n_before_heads(layer)
            ends += [(source, reader) for source in range(before) for reader in heads]
            by_mlp = before if self.parallel else before + self.n_heads
            ends += [(source, start + per_layer - 1) for source in range(by_mlp)]
        ends += [(source, self.n_layers * per_layer) for source in range(len(self.sources))]
        return torch.tensor(ends)

    @cached_property
    def into(self) -> dict[str, list[int]]:
        """Indices of the edges into each node, for all its readers together."""
        found: dict[str, list[int]] = {}
        for edge, reader in enumerate(self.ends[:, 1].tolist()):
            found.setdefault(self.node_of_reader[reader], []).append(edge)
        return found

    @cached_property
    def node_of_reader(self) -> tuple[str, ...]:
        """The node that each reader belongs to."""
        return tuple(name.partition("<")[0] for name in self.readers)

    @property
    def n_edges(self) -> int:
        """Number of edges; 32,491 for 12 layers of 12 heads.

        With L layers of H heads, and sums over the layers l = 0 .. L - 1:
        3 H sum(1 + (H+1) l) + sum(1 + H + (H+1) l) + 1 + L (H+1); L H less with a parallel
        residual.
        """
        return len(self.ends)

    def n_before_heads(self, layer: int) -> int:
        """Return how many sources the heads of a layer read."""
        return 1 + layer * (self.n_heads + 1)

    def index(self, edge: str) -> int:
        """Return the index of an edge in `edges`.

        Raises:
            CircuitError: There is no such edge.
        """
        if edge not in self._index:
            raise CircuitError(f"no edge is called {edge!r}{nearest(edge, self.edges)}")
        return self._index[edge]

    def holding(self, edges: Iterable[str]) -> Bool[Tensor, " edge"]:
        """Return a mask that is True at the named edges."""
        edges = [edges] if isinstance(edges, str) else edges
        kept = torch.zeros(self.n_edges, dtype=torch.bool)
        kept[[self.index(edge) for edge in edges]] = True
        return kept

    def matrix(self, values: Float[Tensor, "*some edge"]) -> Float[Tensor, "*some source reader"]:
        """Arrange values of edges as a matrix, with 0 where there is no edge."""
        shape = (*values.shape[:-1], len(self.sources), len(self.readers))
        full = values.new_zeros(shape)
        full[..., self.ends[:, 0], self.ends[:, 1]] = values
        return full

    def pruned(self, kept: Bool[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
        """Return `kept` without the edges that are on no path from the input to the logits.

        No score depends on those edges.
        """
        source, reader = self.ends.T.tolist()
        owner = [self.nodes.index(name) for name in self.node_of_reader]
        last, order = len(self.sources), torch.nonzero(kept).flatten().tolist()
        reached, reaching = {0}, {last}
        # Sources are numbered in forward order, so one sweep in each direction covers every path.
        for edge in sorted(order, key=lambda edge: source[edge]):
            if source[edge] in reached:
                reached.add(owner[reader[edge]])
        for edge in sorted(order, key=lambda edge: -owner[reader[edge]]):
            if owner[reader[edge]] in reaching:
                reaching.add(source[edge])
        alive = torch.zeros_like(kept)
        alive[[e for e in order if source[e] in reached and owner[reader[e]] in reaching]] = True
        return alive

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.edges)}


def graph_of(model: HookedModel) -> Graph:
    """Return the graph of a model.

    Raises:
        ModelError: The model is not a GPT with pre-norm layers and plain attention, or something
            hangs on it.

    Examples:
        >>> graph = circuits.graph_of(model)
        >>> graph.n_edges, len(graph.nodes)
        (110, 12)
    """
    model = read_weights(model, "the graph of a circuit")
    if model.cfg.no_residual_sum:
        raise ModelError(
            "no node reads a plain sum of the others, so edges are not defined: "
            f"{model.cfg.no_residual_sum}; take a model without that"
        )
    if not model.cfg.causal:
        raise ModelError("edges are cut in causal attention only, and this model has causal=False")
    if parts := [part for part in model.cfg.attention_parts if part != "qk_norm"]:
        raise ModelError(
            "edges are cut in plain attention only, and this model has "
            f"{', '.join(parts)}; patch its components instead"
        )
    if found := attachments(model):
        raise ModelError(
            f"{found[0]}, and edges are cut without it; take the model without it "
            "(model.reset_hooks() removes hooks)"
        )
    cfg = model.cfg
    return Graph(cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.parallel_residual)
