"""What the circuit must be told from: no training, other edges, other prompts, another method.

    random init      what the same edges move in a model that was never trained, as a share of what
                     the trained one has to move: 0 when the edges say nothing without the weights
    random circuits  f of circuits as large, chosen in the same way among shuffled edges
    stability        Jaccard overlap with circuits found on prompts drawn again with replacement
                     (EAP-IG varies a lot, https://arxiv.org/abs/2510.00845)
    agreement        Spearman's rank correlation of estimated and exact worth

The interval of random init is over prompts; the others hold 95 % of what was drawn.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp.circuits import edge_ablation
from interp.circuits.edge_selection import at_least, select
from interp.circuits.faithfulness import Judge, Measured, membership
from interp.circuits.graph import Graph
from interp.statistics import resampled_means
from train.model import init_gpt
from train.progress import Progress


__all__ = ["agreement", "random_circuits", "random_init", "stability"]


def random_init(
    judge: Judge, kept: Bool[Tensor, " edge"], *, seed: int = 0, inits: int = 3
) -> Measured:
    """What the edges move in models of the same shape that were never trained, mean over `inits`.

    Relative to the *trained* model's full-empty difference, on the same prompts.
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
    """Mean f of circuits of at least `size` edges, chosen by the same worths, shuffled."""
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
    """Jaccard overlap with circuits found again, and how often each edge was in; None for 1 prompt.

    Rows of one prompt are drawn together.
    """
    member = membership(prompts)
    if member.shape[1] < 2:
        return None, kept.float()
    sums = worth.double().numpy().T @ member
    again = torch.stack([
        select(graph, torch.from_numpy(one).float(), n_edges, selection=selection, signed=signed)
        for one in resampled_means(sums, draws=draws, seed=seed).T
    ])  # fmt: skip
    overlap = ((again & kept).sum(dim=1) / (again | kept).sum(dim=1).clamp(min=1)).double().numpy()
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
    """Spearman's correlation of mean worths over the edges given; None below three of them.

    The interval holds 95 % of what prompts drawn again give.
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
