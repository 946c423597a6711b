"""Controls for a circuit: untrained models, random circuits, resampled prompts, exact ablation.

    random init      score that the same edges move in an untrained model, as a share of the trained
                     model's full-empty difference: near 0 if the edges matter only with the trained
                     weights
    random circuits  f of circuits of the same size, selected in the same way from shuffled worths
    stability        Jaccard overlap with circuits found on prompts resampled with replacement
                     (EAP-IG varies a lot, https://arxiv.org/abs/2510.00845)
    agreement        Spearman's rank correlation of estimated and exact worth

f is faithfulness (`interp.circuits.faithfulness`). The interval of random init is over prompts. The
intervals of the others contain 95 % of the random draws.
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
from train.statistics import resampled_means


__all__ = ["agreement", "random_circuits", "random_init", "stability"]


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

    Each is selected in the same way, from the same worths assigned to the edges at random.
    """
    draw = np.random.Generator(np.random.Philox(key=seed))
    kept = torch.stack([
        at_least(
            graph,
            worth[torch.from_numpy(draw.permutation(graph.n_edges))],
            size,
            selection=selection,
            signed=signed,
        )
        for _ in range(circuits)
    ])  # fmt: skip
    f = judge.f(judge.moved(kept, progress))
    low, high = np.quantile(f, [0.025, 0.975]).tolist()
    return Measured(float(f.mean()), low, high, circuits, "circuits")


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
