"""The circuit of a behaviour: the edges that carry it, found, and then checked.

`find` scores every edge (`interp.edge_attribution`), keeps the strongest (`interp.edge_selection`)
and runs the model with only those kept (`interp.cutting`). The prompts that choose the edges are
not the prompts that judge them, and each number comes with the controls that could have refuted it
(`interp.circuit_checks`).
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import averages, behaviours, circuit_checks, cutting, edge_attribution, metrics
from interp.behaviours import Behaviour
from interp.circuit_checks import Judge, Measured
from interp.circuit_results import Checks, Circuit
from interp.cutting import MEMORY, MetricOf
from interp.edge_selection import select
from interp.edges import Graph, graph_of
from interp.effects import provenance
from interp.errors import CircuitError
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
    steps: int = edge_attribution.STEPS,
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
        behaviour: What it does; the corrupt prompts are what a cut edge carries.
        method: "eap-ig", "eap" or "exact" (a pass an edge).
        n_edges: How many before pruning; None: by bisection, a number that keeps 0.9 of the
            difference on the prompts that choose. Faithfulness can fall when edges are added, so
            fewer may do as well.
        selection: "greedy" or "top".
        signed: Seek only edges that work for the behaviour, not those against it.
        steps: Of eap-ig.
        metric: Builds the metric of a behaviour.
        held_out: Share of the prompts that judge and do not choose.
        checked: Measure completeness, minimality, the curves, controls and stability as well: some
            200 circuits more.
        seed: Of the split, the controls and the draws.
        memory: Bytes above the weights.
        progress: Told what is being done.

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: Clean and corrupt prompts score alike.
        ModelError: The model has no edges that can be cut.
        CircuitError: The edges reach not from the input to the logits.
    """
    graph = graph_of(model)
    behaviours.check(model, behaviour)
    choosing, judging = _split(behaviour, held_out, seed)
    worth = edge_attribution.worth(
        model,
        choosing,
        method=method,
        steps=steps,
        metric=metric,
        memory=memory,
        progress=progress,
    )
    mean = worth.mean(dim=0)
    chooser = Judge.of(model, choosing, metric=metric, memory=memory)
    asked = _enough(chooser, graph, mean, selection, signed) if n_edges is None else n_edges
    kept = select(graph, mean, asked, selection=selection, signed=signed)
    if not kept.any():
        raise CircuitError(
            f"the {asked} strongest edges of {behaviour.name!r} reach not from the input to the "
            "logits; take more, or selection='greedy'"
        )
    judge = Judge.of(model, judging, metric=metric, memory=memory)
    made = metric(judging)
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
        n_chose=len(choosing.clean.unique(dim=0)),
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
    prompts = averages.prompts_of(behaviour.clean)
    n_prompts = int(prompts.max()) + 1
    n_judges = round(held_out * n_prompts)
    if n_judges < 2 or n_prompts - n_judges < 2:
        return (behaviour, behaviour)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(n_prompts)
    judges = torch.from_numpy(np.isin(prompts, order[:n_judges]))
    rows = torch.arange(behaviour.n_prompts)
    return cutting.part_of(behaviour, rows[~judges]), cutting.part_of(behaviour, rows[judges])


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
    prompts = averages.prompts_of(chooser.behaviour.clean).tolist()
    strongest = torch.tensor([graph.index(edge) for edge in found.edges[:STRONGEST]])
    cut = torch.arange(graph.n_edges) != strongest[:, None]
    whole = torch.ones(1, graph.n_edges, dtype=torch.bool)
    scores = chooser.moved(torch.cat([whole, cut]), progress)
    fell = scores[0] - scores[1:]
    stable, again = circuit_checks.stability(
        graph, worth, kept, prompts, n_edges=found.n_asked, **how
    )
    cpr, cmd = circuit_checks.curves(judge, graph, mean, progress=progress)
    return Checks(
        complement=judge.measured(judge.moved(~kept[None])[0]),
        completeness=circuit_checks.completeness(judge, graph, kept, progress),
        minimality=circuit_checks.minimality(judge, kept, seed=seed, progress=progress),
        cpr=cpr,
        cmd=cmd,
        random_init=circuit_checks.random_init(judge, kept, seed=seed),
        random_circuits=circuit_checks.random_circuits(
            judge, graph, mean, int(kept.sum()), progress=progress, **how
        ),
        stability=stable,
        agreement=circuit_checks.agreement(
            worth[:, strongest], torch.from_numpy(fell.T).float(), prompts, seed=seed
        ),
        again=again,
        exact={
            graph.edges[edge]: _mean(one, prompts)
            for edge, one in zip(strongest.tolist(), fell, strict=True)
        },
    )


def _mean(scores: Float[np.ndarray, " row"], prompts: list[int]) -> Measured:
    """Mean over rows in the metric's unit."""
    average = averages.over_prompts(scores, np.asarray(prompts))
    low, high = (None if end is None else end.item() for end in (average.low, average.high))
    return Measured(average.values.item(), low, high, average.n, "prompts")
