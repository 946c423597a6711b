"""Controls for a circuit: untrained models, random circuits, resampled prompts, exact ablation.

    random init      score that the same edges move in an untrained model, as a share of the trained
                     model's full-empty difference: how little an untrained model does at all
    own scale        f of the same edges in untrained models, each as a share of its own full-empty
                     difference; refused where that difference cannot be told from 0
    random circuits  f of circuits of the same size, selected in the same way from shuffled worths.
                     Worths of edges from the input are shuffled among themselves, and so are the
                     others, so that random circuits read the input about as often. This control can
                     fail: where any path from the input does, random circuits do as well
    stability        Jaccard overlap with circuits found on prompts resampled with replacement
                     (EAP-IG varies a lot, https://arxiv.org/abs/2510.00845)
    agreement        Spearman's rank correlation of estimated and exact worth

f is faithfulness (`interp.circuits.faithfulness`). The interval of random init is over prompts, and
that of own scale holds all models. The intervals of the others contain 95 % of the random draws.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp.circuits import edge_ablation
from interp.circuits.edge_selection import at_least, select
from interp.circuits.faithfulness import Judge, Measured, membership
from interp.circuits.graph import Graph
from train.model import init_gpt
from train.progress import Progress
from train.statistics import ratio_interval, resampled_means


__all__ = ["agreement", "own_scale", "random_circuits", "random_init", "stability"]


def random_init(
    judge: Judge, kept: Bool[Tensor, " edge"], *, seed: int = 0, inits: int = 3
) -> Measured:
    """Measure how far the edges move the metric in untrained models, mean over `inits` of them.

    The result is relative to the *trained* model's full-empty difference, on the same prompts.
    """
    moved = np.zeros_like(judge.full)
    for number in range(inits):
        twin = init_gpt(judge.model.cfg, seed=seed + number).to(judge.model.device).eval()
        both = torch.stack([kept, torch.zeros_like(kept)])
        scores = edge_ablation.scores(
            twin, judge.behaviour, both, metric=judge.metric, memory=judge.memory
        )
        moved += (scores[0] - scores[1]).double().numpy() / inits
    return judge.measured(moved)


def own_scale(
    judge: Judge, kept: Bool[Tensor, " edge"], *, seed: int = 0, inits: int = 3
) -> Measured | None:
    """Measure f of the edges in untrained models, each on its own scale; mean over the models.

    Models whose full-empty difference cannot be told from 0 (Student's t at 95 %) are left out;
    None if that leaves none, because f is then a ratio of noise.
    """
    found, member = [], judge.member
    for number in range(inits):
        twin = init_gpt(judge.model.cfg, seed=seed + number).to(judge.model.device).eval()
        three = torch.stack([kept, torch.ones_like(kept), torch.zeros_like(kept)])
        scores = edge_ablation.scores(
            twin, judge.behaviour, three, metric=judge.metric, memory=judge.memory
        )
        part, full, empty = scores.double().numpy() @ member
        if ratio_interval((part - empty)[None], full - empty) is not None:
            found.append(float((part - empty).sum() / (full - empty).sum()))
    if not found:
        return None
    return Measured(float(np.mean(found)), min(found), max(found), len(found), "untrained models")


def random_circuits(
    judge: Judge,
    graph: Graph,
    worth: Float[Tensor, " edge"],
    size: int,
    *,
    selection: str,
    signed: bool,
    seed: int = 0,
    circuits: int = 20,
    progress: Progress | None = None,
) -> Measured:
    """Return the mean f of random circuits of at least `size` edges.

    Each is selected in the same way, from the same worths assigned to the edges at random: those of
    edges from the input to other edges from the input, and the others to others.
    """
    draw = np.random.Generator(np.random.Philox(key=seed))
    from_input = (graph.ends[:, 0] == 0).numpy()
    kept = torch.stack([
        at_least(
            graph,
            worth[torch.from_numpy(_shuffled(from_input, draw))],
            size,
            selection=selection,
            signed=signed,
        )
        for _ in range(circuits)
    ])  # fmt: skip
    f = judge.f(judge.moved(kept, progress))
    low, high = np.quantile(f, [0.025, 0.975]).tolist()
    return Measured(float(f.mean()), low, high, circuits, "circuits")


def _shuffled(group: Bool[np.ndarray, " edge"], draw: np.random.Generator) -> np.ndarray:
    """Return a permutation of edges that keeps every edge within its group."""
    order = np.arange(len(group))
    for one in (group, ~group):
        order[one] = draw.permutation(order[one])
    return order


def stability(
    graph: Graph,
    worth: Float[Tensor, "row edge"],
    kept: Bool[Tensor, " edge"],
    prompts: Int64[np.ndarray, " row"],
    *,
    n_edges: int,
    selection: str,
    signed: bool,
    seed: int = 0,
    draws: int = 100,
) -> tuple[Measured | None, Float[Tensor, " edge"]]:
    """Measure how much the circuit depends on the choice of prompts.

    Prompts are resampled with replacement; rows of one prompt are drawn together. Returns the mean
    Jaccard overlap of the circuit with the resampled ones (None with a single prompt), and the
    share of the resampled circuits that contain each edge.
    """
    member = membership(prompts)
    if member.shape[1] < 2:
        return None, kept.float()
    sums = worth.double().numpy().T @ member
    again = torch.stack([
        select(graph, torch.from_numpy(one).float(), n_edges, selection=selection, signed=signed)
        for one in resampled_means(sums, draws=draws, seed=seed).T
    ])  # fmt: skip
    both, either = (again & kept).sum(dim=1), (again | kept).sum(dim=1)
    overlap = (both.float() / either.clamp(min=1)).double().numpy()
    low, high = np.quantile(overlap, [0.025, 0.975]).tolist()
    found = Measured(float(overlap.mean()), low, high, draws, "draws of the prompts")
    return found, again.float().mean(dim=0)


def agreement(
    estimated: Float[Tensor, "row edge"],
    exact: Float[Tensor, "row edge"],
    prompts: Int64[np.ndarray, " row"],
    *,
    seed: int = 0,
) -> Measured | None:
    """Return Spearman's correlation of estimated and exact mean worths over the given edges.

    None for fewer than three edges. The interval contains 95 % of the correlations on resampled
    prompts.
    """
    from scipy.stats import rankdata

    if estimated.shape[1] < 3:
        return None
    member = membership(prompts)
    sums = [one.double().numpy().T @ member for one in (estimated, exact)]

    def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        ranks = [rankdata(values, axis=0) for values in (one, other)]
        centred = [rank - rank.mean(axis=0) for rank in ranks]
        spread = np.sqrt((centred[0] ** 2).sum(axis=0) * (centred[1] ** 2).sum(axis=0))
        return (centred[0] * centred[1]).sum(axis=0) / np.maximum(spread, 1e-12)

    value = float(correlation(*(one.mean(axis=1, keepdims=True) for one in sums))[0])
    if member.shape[1] < 2:
        return Measured(value, None, None, estimated.shape[1], "edges")
    drawn = correlation(*(resampled_means(one, seed=seed) for one in sums))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Measured(value, low, high, estimated.shape[1], "edges")
