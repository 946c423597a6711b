"""Edge selection: choose the edges of a circuit by their worth.

`top` takes the n strongest edges of the graph, as the curves of MIB do. `greedy` grows from the
logits: an edge can be taken once the node of its reader is in the circuit, so that no edge is spent
on a node that nothing reads (Hanna et al. 2024). In both cases, edges on no path from the input to
the logits are then pruned. This changes no score, but the circuit may have fewer edges than
requested.

The strength of an edge is its worth (`edge_attribution_patching`) if `signed`, otherwise the
absolute value of its worth, so that edges that work against the behaviour are kept as well.
"""

import heapq

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.circuits.graph import Graph
from interp.errors import BehaviourError, CircuitError
from train.errors import nearest


__all__ = ["SELECTIONS", "at_least", "greedy", "select", "top"]

SELECTIONS = ("greedy", "top")


def select(
    graph: Graph,
    worth: Float[Tensor, " edge"],
    n_edges: int,
    *,
    selection: str = "greedy",
    signed: bool = False,
) -> Bool[Tensor, " edge"]:
    """Select at most `n_edges` edges by the named selection, and prune them.

    Raises:
        BehaviourError: There is no selection of that name.
        CircuitError: `n_edges` is negative or exceeds the number of edges.
    """
    if selection not in SELECTIONS:
        raise BehaviourError(
            f"no selection is called {selection!r}{nearest(selection, SELECTIONS)}"
        )
    if not 0 <= n_edges <= graph.n_edges:
        raise CircuitError(f"{n_edges} edges were asked of a graph of {graph.n_edges}")
    strength = worth if signed else worth.abs()
    choose = greedy if selection == "greedy" else top
    return graph.pruned(choose(graph, strength, n_edges))


def top(graph: Graph, strength: Float[Tensor, " edge"], n_edges: int) -> Bool[Tensor, " edge"]:
    """Select the n strongest edges; among equal ones, the first."""
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[strength.argsort(descending=True, stable=True)[:n_edges]] = True
    return kept


def greedy(graph: Graph, strength: Float[Tensor, " edge"], n_edges: int) -> Bool[Tensor, " edge"]:
    """Select n edges from the logits back: always the strongest edge whose reader is already in."""
    # Invariant: `open_edges` is a heap of all edges not taken whose reader's node is in `inside`.
    value = (-strength).tolist()
    source = [graph.sources[s] for s in graph.ends[:, 0].tolist()]
    inside, open_edges = {"logits"}, [(value[e], e) for e in graph.into["logits"]]
    heapq.heapify(open_edges)
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    for _ in range(min(n_edges, graph.n_edges)):
        edge = heapq.heappop(open_edges)[1]
        kept[edge] = True
        if source[edge] not in inside:
            inside.add(source[edge])
            for one in graph.into.get(source[edge], ()):
                heapq.heappush(open_edges, (value[one], one))
    return kept


def at_least(
    graph: Graph, worth: Float[Tensor, " edge"], size: int, *, selection: str, signed: bool
) -> Bool[Tensor, " edge"]:
    """Select the fewest edges, by bisection, that leave at least `size` edges after pruning."""
    # Selections are nested, so the number of edges left after pruning never falls as n grows.
    few, many = 0, graph.n_edges
    while few < many:
        middle = (few + many) // 2
        kept = select(graph, worth, middle, selection=selection, signed=signed)
        few, many = (few, middle) if int(kept.sum()) >= size else (middle + 1, many)
    return select(graph, worth, many, selection=selection, signed=signed)
