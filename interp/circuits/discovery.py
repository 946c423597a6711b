"""Circuit discovery: find the edges that carry a behaviour, and check them.

`find` scores every edge (`edge_attribution_patching`), keeps the strongest
(`interp.circuits.edge_selection`) and runs the model with only those edges
(`interp.circuits.edge_ablation`). Edges are chosen on some of the prompts and evaluated on the
others, and the result comes with checks and controls that can refute it
(`interp.circuits.faithfulness`, `interp.circuits.controls`).
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp import behaviours, metrics
from interp.behaviours import Behaviour
from interp.circuits import ablations, controls, edge_attribution_patching, faithfulness
from interp.circuits.ablations import AblationTest
from interp.circuits.edge_ablation import MEMORY
from interp.circuits.edge_selection import select
from interp.circuits.faithfulness import Judge, Measured
from interp.circuits.graph import Graph, graph_of
from interp.circuits.result import Checks, Circuit
from interp.components import HookedModel, read_weights
from interp.errors import CircuitError
from interp.metrics import MetricOf
from interp.results import provenance
from train import statistics
from train.model import GPT
from train.progress import Progress
from train.statistics import over_prompts


__all__ = ["Circuit", "check", "find"]

ENOUGH = 0.9  # faithfulness that the search for a number of edges aims at
SAME_PROMPTS = "the prompts that chose the edges also judge them"
STRONGEST = 30  # edges whose worth is measured exactly
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)  # sizes of other circuits that are tested, as shares of this one


def find(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    method: str = "eap-ig",
    n_edges: int | None = None,
    selection: str = "greedy",
    signed: bool = False,
    steps: int = edge_attribution_patching.STEPS,
    metric: MetricOf = "logit-difference",
    held_out: float = 0.5,
    checked: bool = True,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Circuit:
    """Find the edges that carry a behaviour, and measure how well they do.

    Args:
        model: A pre-norm decoder, from `interp.models.load`.
        behaviour: The behaviour. An ablated edge carries its value on the corrupt prompts.
        method: Method that scores the edges: "eap-ig", "eap" or "exact" (one pass per edge).
        n_edges: Number of edges before pruning. None searches by bisection for a number that keeps
            0.9 of the clean-corrupt difference on the choosing prompts; since f may fall as edges
            are added, a smaller number may do as well.
        selection: "greedy" or "top".
        steps: Steps of EAP-IG.
        signed: Rank edges by worth instead of its absolute value, so that edges that work against
            the behaviour come last.
        metric: Name of the metric, or the function that makes it for a behaviour.
        held_out: Share of the prompts that are not used to choose the edges but to evaluate them.
            With fewer than two prompts on either side, all prompts do both, and a note says so.
        checked: Also run the checks and controls, some 200 more circuits.
        seed: Seed of the split of the prompts, and of the checks and controls.
        memory: Bytes that may be used above the weights.
        progress: Function that is told the progress.

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: Clean and corrupt prompts score alike.
        BehaviourError: The method or the selection is unknown, or `steps` is below 1.
        ModelError: The edges of the model cannot be ablated.
        CircuitError: `n_edges` exceeds the number of edges, the selected edges do not connect the
            input to the logits, or `held_out` is not in [0, 1).
        BudgetError: Not even one circuit on one prompt fits into the memory.

    Examples:
        >>> circuit = circuits.find(model, ioi, checked=False)
        >>> circuit.graph.n_edges, circuit.method, circuit.n_chose
        (110, 'eap-ig', 32)
        >>> "a0.h1" in circuit.nodes, circuit.faithfulness.value > 0.5
        (True, True)
    """
    model = read_weights(model, "a circuit")
    graph = graph_of(model)
    behaviours.check(model, behaviour)
    choosing, judging = _split(behaviour, held_out, seed)
    chooser, judge = (
        Judge.of(model, one, metric=metric, memory=memory) for one in (choosing, judging)
    )
    worth = edge_attribution_patching.edge_scores(
        model,
        choosing,
        method=method,
        steps=steps,
        metric=metric,
        memory=memory,
        progress=progress,
    )
    mean, made = worth.mean(dim=0), metrics.made_for(metric, judging)
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
        notes=(
            *judge.notes,
            *(() if judging is not choosing else (SAME_PROMPTS,)),
            *_shared_positions(judging),
        ),
        ablations=_tested(judge, kept[None], seed)[0],
    )
    if not checked:
        return found
    return replace(found, checks=_checked(found, judge, chooser, worth, seed, progress))


def check(
    model: GPT,
    behaviour: Behaviour,
    kept: Bool[Tensor, " edge"],
    *,
    metric: MetricOf = "logit-difference",
    seed: int = 0,
    memory: int = MEMORY,
) -> tuple[AblationTest, ...]:
    """Measure what any set of edges keeps under several ablations, e.g. a circuit from a file.

    Returns the tests with corrupt, mean and resampled values on the ablated edges; with a single
    prompt, only the first. `seed` draws the prompts of the last.

    Raises:
        CircuitError: The edges belong to a model of another size.
        ContrastError: The metric is the same on clean and corrupt prompts.
        ModelError: The edges of the model cannot be ablated.

    Examples:
        >>> kept = torch.ones(circuits.graph_of(model).n_edges, dtype=torch.bool)
        >>> for test in circuits.check(model, ioi, kept):
        ...     print(test.standin, test.faithfulness.value, test.above_foil)
        corrupt 1.0 1.000 [0.943, 1.000] (64 prompts)
        mean 1.0 1.000 [0.943, 1.000] (64 prompts)
        resample 1.0 1.000 [0.943, 1.000] (64 prompts)
    """
    graph = graph_of(model)
    if len(kept) != graph.n_edges:
        raise CircuitError(
            f"a circuit of {len(kept)} edges does not fit this model of {graph.n_edges}; it has "
            f"{graph.n_layers} layers of {graph.n_heads} heads"
        )
    judge = Judge.of(model, behaviour, metric=metric, memory=memory)
    return _tested(judge, kept[None], seed)[0]


def _tested(
    judge: Judge, kept: Bool[Tensor, "circuit edge"], seed: int, progress: Progress | None = None
) -> list[tuple[AblationTest, ...]]:
    return ablations.ablation_tests(
        judge.model,
        judge.behaviour,
        kept,
        metric=judge.metric,
        seed=seed,
        memory=judge.memory,
        progress=progress,
    )


def _shared_positions(behaviour: Behaviour) -> tuple[str, ...]:
    """Note at how many positions clean and corrupt prompts hold the same tokens, if at any."""
    same = int((behaviour.clean == behaviour.corrupt).all(dim=0).sum())
    if not same:
        return ()
    return (
        f"clean and corrupt prompts hold the same tokens at {same} of {behaviour.n_pos} positions, "
        "so ablated edges carry what stands there too: this is a circuit of the contrast. The "
        "ablations by mean and resample show what it does without that",
    )


def _split(behaviour: Behaviour, held_out: float, seed: int) -> tuple[Behaviour, Behaviour]:
    """Split a behaviour into prompts that choose the edges and prompts that judge them.

    Rows of one prompt or group stay together. With fewer than two of them on either side, both
    parts are the whole behaviour.
    """
    if not 0 <= held_out < 1:
        raise CircuitError(f"held_out is {held_out}; it is a share of the prompts, below 1")
    prompts = _cases(behaviour)
    n_prompts = int(prompts.max()) + 1
    n_judges = round(held_out * n_prompts)
    if n_judges < 2 or n_prompts - n_judges < 2:
        return (behaviour, behaviour)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(n_prompts)
    judges = torch.from_numpy(np.isin(prompts, order[:n_judges]))
    rows = torch.arange(behaviour.n_prompts)
    return behaviour.of(rows[~judges]), behaviour.of(rows[judges])


def _cases(behaviour: Behaviour) -> Int64[np.ndarray, " row"]:
    """Return the case of each row. Prompts keep the order by which seeded draws have chosen."""
    return np.array(behaviour.cases) if behaviour.groups else statistics.n_prompts(behaviour.clean)


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
    """Find a number of edges with faithfulness of at least `ENOUGH`, by bisection."""
    # Invariant: `many` edges are enough (or are all edges), `few` are not.
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
    prompts = _cases(chooser.behaviour)
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
        own_scale=controls.own_scale(judge, kept, seed=seed),
        sizes=tuple(_tested(judge, _other_sizes(found), seed, progress)),
        exact={
            graph.edges[edge]: _mean(one, prompts)
            for edge, one in zip(strongest.tolist(), fell, strict=True)
        },
    )


def _other_sizes(found: Circuit) -> Bool[Tensor, "circuit edge"]:
    """Select circuits of other sizes, `SIZES` times that of the circuit before pruning."""
    most = found.graph.n_edges
    sizes = sorted({min(max(1, round(size * found.n_asked)), most) for size in SIZES})
    return torch.stack([
        select(found.graph, found.worth, n, selection=found.selection, signed=found.signed)
        for n in sizes
    ])  # fmt: skip


def _mean(scores: Float[np.ndarray, " row"], prompts: Int64[np.ndarray, " row"]) -> Measured:
    """Return the mean over rows in the metric's unit, with its interval over prompts."""
    average = over_prompts(scores[None], prompts).at(0)
    low, high = (
        None if end is None or end.isnan() else end.item() for end in (average.low, average.high)
    )
    return Measured(average.values.item(), low, high, average.n, "prompts")
