"""The circuit of a behaviour: the edges that carry it, found, and then checked.

`find` scores every edge (`interp.circuits.edge_scores`), keeps the strongest
(`interp.circuits.edge_selection`) and runs the model with only those kept
(`interp.circuits.edge_ablation`). The prompts that choose the edges are not the prompts that judge
them, and each number comes with the controls that could have refuted it
(`interp.circuits.faithfulness`, `interp.circuits.controls`).
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp import behaviours, metrics, statistics
from interp.behaviours import Behaviour
from interp.circuits import controls, edge_ablation, edge_scores, faithfulness
from interp.circuits.edge_ablation import MEMORY, MetricOf
from interp.circuits.edge_selection import select
from interp.circuits.faithfulness import Judge, Measured
from interp.circuits.graph import Graph, graph_of
from interp.circuits.result import Checks, Circuit
from interp.errors import CircuitError
from interp.patching import provenance
from interp.statistics import over_prompts
from train.model import GPT
from train.progress import Progress


__all__ = ["Circuit", "check", "find"]

ENOUGH = 0.9  # faithfulness at which the search for a size stops
SAME_PROMPTS = "the prompts that chose the edges also judge them"
STRONGEST = 30  # edges whose worth is measured exactly


def find(
    model: GPT,
    behaviour: Behaviour,
    *,
    method: str = "eap-ig",
    n_edges: int | None = None,
    selection: str = "greedy",
    signed: bool = False,
    steps: int = edge_scores.STEPS,
    metric: MetricOf = metrics.logit_difference,
    held_out: float = 0.5,
    checked: bool = True,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Circuit:
    """The edges that carry a behaviour, and whether they do.

    Args:
        model: A pre-norm decoder, from `hooked.load`.
        behaviour: What it does; a cut edge carries what its corrupt prompts give.
        method: "eap-ig", "eap" or "exact" (a pass an edge).
        n_edges: How many before pruning; None: by bisection, a number that keeps 0.9 of the
            difference on the prompts that choose (f may fall as edges are added: fewer may do).
        selection: "greedy" or "top".
        signed: Rank by worth, not by its size: edges against the behaviour come last.
        metric: Builds the metric of a behaviour.
        held_out: Share of the prompts that judge and do not choose.
        checked: Run the checks and controls as well: some 200 circuits more.
        memory: Bytes above the weights.

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: Clean and corrupt prompts score alike.
        ModelError: The model has no edges that can be cut.
        CircuitError: More edges than there are, or none from the input to the logits.
    """
    graph = graph_of(model)
    behaviours.check(model, behaviour)
    choosing, judging = _split(behaviour, held_out, seed)
    how: dict[str, Any] = {"metric": metric, "memory": memory}
    chooser, judge = (Judge.of(model, one, **how) for one in (choosing, judging))
    worth = edge_scores.worth(model, choosing, method=method, steps=steps, progress=progress, **how)
    mean, made = worth.mean(dim=0), metric(judging)
    asked = _enough(chooser, graph, mean, selection, signed) if n_edges is None else n_edges
    kept = _chosen(graph, mean, asked, selection, signed)
    found = Circuit(
        graph=graph,
        worth=mean,
        kept=kept,
        method=method,
        steps=steps,
        selection=selection,
        signed=signed,
        n_asked=asked,
        full=float(judge.full.mean()),
        empty=float(judge.empty.mean()),
        faithfulness=judge.measured(judge.moved(kept[None])[0]),
        n_chose=chooser.member.shape[1],
        held_out=judging is not choosing,
        metric=made.name,
        unit=made.unit,
        provenance=provenance(model, behaviour, seed=seed),
        notes=() if judging is not choosing else (SAME_PROMPTS,),
    )
    if not checked:
        return found
    return replace(found, checks=_checked(found, judge, chooser, worth, seed, progress))


def check(
    model: GPT,
    behaviour: Behaviour,
    kept: Bool[Tensor, " edge"],
    *,
    metric: MetricOf = metrics.logit_difference,
    memory: int = MEMORY,
) -> Measured:
    """Faithfulness of any edges, also of a circuit found elsewhere or read from a file.

    Raises:
        CircuitError: The edges are of another model.
    """
    graph = graph_of(model)
    if len(kept) != graph.n_edges:
        raise CircuitError(
            f"a circuit of {len(kept)} edges does not fit this model of {graph.n_edges}; it has "
            f"{graph.n_layers} layers of {graph.n_heads} heads"
        )
    judge = Judge.of(model, behaviour, metric=metric, memory=memory)
    return judge.measured(judge.moved(kept[None])[0])


def _split(behaviour: Behaviour, held_out: float, seed: int) -> tuple[Behaviour, Behaviour]:
    """Prompts that choose and prompts that judge; rows of one prompt stay together."""
    if not 0 <= held_out < 1:
        raise CircuitError(f"held_out is {held_out}; it is a share of the prompts, below 1")
    prompts = statistics.n_prompts(behaviour.clean)
    n_prompts = int(prompts.max()) + 1
    n_judges = round(held_out * n_prompts)
    if n_judges < 2 or n_prompts - n_judges < 2:
        return (behaviour, behaviour)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(n_prompts)
    judges = torch.from_numpy(np.isin(prompts, order[:n_judges]))
    rows = torch.arange(behaviour.n_prompts)
    return edge_ablation.part_of(behaviour, rows[~judges]), edge_ablation.part_of(
        behaviour, rows[judges]
    )


def _chosen(
    graph: Graph, worth: Float[Tensor, " edge"], asked: int, selection: str, signed: bool
) -> Bool[Tensor, " edge"]:
    kept = select(graph, worth, asked, selection=selection, signed=signed)
    if not kept.any():
        raise CircuitError(
            f"the {asked} strongest of {graph.n_edges} edges reach not from the input to the "
            f"logits by {selection!r} selection; ask for more of them"
        )
    return kept


def _enough(
    judge: Judge, graph: Graph, worth: Float[Tensor, " edge"], selection: str, signed: bool
) -> int:
    """A number of edges that keeps `ENOUGH` on the judge's prompts, by bisection."""
    few, many = 0, graph.n_edges
    while many - few > 1:
        middle = (few + many) // 2
        kept = select(graph, worth, middle, selection=selection, signed=signed)
        enough = judge.f(judge.moved(kept[None]))[0] >= ENOUGH
        few, many = (few, middle) if enough else (middle, many)
    return many


def _checked(
    found: Circuit,
    judge: Judge,
    chooser: Judge,
    worth: Float[Tensor, "row edge"],
    seed: int,
    progress: Progress | None,
) -> Checks:
    graph, kept, mean = found.graph, found.kept, found.worth
    how = {"selection": found.selection, "signed": found.signed, "seed": seed}
    prompts = statistics.n_prompts(chooser.behaviour.clean)
    strongest = torch.tensor([graph.index(edge) for edge in found.edges[:STRONGEST]])
    cut = torch.arange(graph.n_edges) != strongest[:, None]
    whole = torch.ones(1, graph.n_edges, dtype=torch.bool)
    scores = chooser.moved(torch.cat([whole, cut]), progress)
    fell = scores[0] - scores[1:]
    stable, again = controls.stability(graph, worth, kept, prompts, n_edges=found.n_asked, **how)
    cpr, cmd = faithfulness.curves(judge, graph, mean, progress=progress)
    return Checks(
        complement=judge.measured(judge.moved(~kept[None])[0]),
        completeness=faithfulness.completeness(judge, graph, kept, progress),
        minimality=faithfulness.minimality(judge, kept, seed=seed, progress=progress),
        cpr=cpr,
        cmd=cmd,
        random_init=controls.random_init(judge, kept, seed=seed),
        random_circuits=controls.random_circuits(
            judge, graph, mean, int(kept.sum()), progress=progress, **how
        ),
        stability=stable,
        agreement=controls.agreement(
            worth[:, strongest], torch.from_numpy(fell.T).float(), prompts, seed=seed
        ),
        again=again,
        exact={
            graph.edges[edge]: _mean(one, prompts)
            for edge, one in zip(strongest.tolist(), fell, strict=True)
        },
    )


def _mean(scores: Float[np.ndarray, " row"], prompts: Int64[np.ndarray, " row"]) -> Measured:
    """Mean over rows in the metric's unit."""
    average = over_prompts(scores[None], prompts).at(0)
    low, high = (None if end is None else end.item() for end in (average.low, average.high))
    return Measured(average.values.item(), low, high, average.n, "prompts")
