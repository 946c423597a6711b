"""Faithfulness, completeness and minimality of a circuit, and the MIB scores CPR and CMD.

Let m be the mean of the metric over prompts, C the circuit, M the model, and
f(C) = (m(C) - m(empty)) / (m(M) - m(empty)). f is 1 if the circuit does all that the model does,
and 0 if it does nothing.

    faithfulness     f(C)
    complement       f(M without the edges of C): 0 if the other edges do nothing of the behaviour
    completeness     mean over nodes v of abs(f(C without v) - f(M without v)): 0 if removing a node
                     from the circuit has the same effect as removing it from the model (Wang et al.
                     2022, https://arxiv.org/abs/2211.00593, for sets of one node)
    minimality       share of edges whose removal moves f(C) by more than 0.01
    CPR              area under f over the share of edges kept, largest signed worth first
    CMD              area of abs(1 - f), largest absolute worth first; 0 is best (both as MIB
                     defines them, Mueller et al. 2025, https://arxiv.org/abs/2504.13151)

All circuits are run exactly (`interp.circuits.edge_ablation`). Intervals are over prompts, for
fixed edges. `interp.circuits.controls` compares with other circuits, models and prompts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp import metrics, patching
from interp.behaviours import Behaviour
from interp.circuits import edge_ablation
from interp.circuits.edge_selection import select
from interp.circuits.graph import Graph, graph_of
from interp.metrics import MetricOf
from train.model import GPT
from train.progress import Progress, count
from train.short_repr import short_repr
from train.statistics import ratio_estimate, resampled_means


__all__ = ["SHARES", "Curve", "Judge", "Measured"]
__all__ += ["completeness", "curves", "membership", "minimality"]

# Shares of all edges at which MIB measures.
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MOVED = 0.01  # change of f above which an edge counts as needed
MOST_EDGES = 100  # edges whose removal is tried for minimality; a sample if there are more


@dataclass(frozen=True)
class Measured:
    """Number with its 95 % interval.

    Attributes:
        value: The number.
        low: Lower end of the interval; None if there is none.
        high: Upper end of the interval; None if there is none.
        n: Number of cases that it is based on.
        of: Kind of those cases, e.g. "prompts".
    """

    value: float
    low: float | None
    high: float | None
    n: int
    of: str

    def __str__(self) -> str:
        bounds = "no interval" if self.low is None else f"[{self.low:.3f}, {self.high:.3f}]"
        of = self.of.replace("prompts", "prompt")
        return f"{self.value:.3f} {bounds} ({count(self.n, of, self.of)})"


@dataclass(frozen=True)
class Curve:
    """Faithfulness f as a function of the share of edges kept.

    Attributes:
        shares: Shares of all edges.
        n_edges: Number of edges at each share, before pruning.
        kept: Number of edges left after pruning.
        f: Faithfulness at each share.
        area: Area under f, or for CMD that of abs(1 - f).
    """

    shares: tuple[float, ...]
    n_edges: tuple[int, ...]
    kept: tuple[int, ...]
    f: tuple[float, ...]
    area: Measured

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class Judge:
    """Model, prompts to evaluate circuits on, and the scores of the full and the empty circuit.

    Attributes:
        model: The model.
        behaviour: The prompts.
        metric: Name of the metric, or the function that makes it for a behaviour.
        memory: Bytes that may be used above the weights.
        full: Scores of the full model, one per row of the behaviour.
        empty: Scores of the empty circuit, which is the corrupt run.
        notes: Remark about too few prompts, which goes to the circuit.
    """

    model: GPT
    behaviour: Behaviour
    metric: MetricOf
    memory: int
    full: Float[np.ndarray, " row"]
    empty: Float[np.ndarray, " row"]
    notes: tuple[str, ...] = ()

    __repr__ = short_repr

    @classmethod
    def of(cls, model: GPT, behaviour: Behaviour, *, metric: MetricOf, memory: int) -> "Judge":
        """Score the full and the empty circuit.

        Raises:
            ContrastError: The metric is the same on clean and corrupt prompts.
        """
        graph = graph_of(model)
        kept = torch.tensor([[True], [False]]).expand(-1, graph.n_edges)
        scores = edge_ablation.scores(model, behaviour, kept, metric=metric, memory=memory)
        full, empty = scores.double().numpy()
        notes = patching.require_contrast(
            full,
            empty,
            np.array(behaviour.cases),
            name=behaviour.name,
            metric=metrics.made_for(metric, behaviour).name,
        )
        return cls(model, behaviour, metric, memory, full, empty, notes)

    def moved(
        self, kept: Bool[Tensor, "circuit edge"], progress: Progress | None = None
    ) -> Float[np.ndarray, "circuit row"]:
        """Return the score of each circuit minus that of the empty circuit, on every row."""
        scores = edge_ablation.scores(
            self.model,
            self.behaviour,
            kept,
            metric=self.metric,
            memory=self.memory,
            progress=progress,
        )
        return scores.double().numpy() - self.empty

    def f(self, moved: Float[np.ndarray, "*some row"]) -> Float[np.ndarray, "*some"]:
        """Return the faithfulness, from the score changes that `moved` returns."""
        return np.asarray(moved.mean(axis=-1) / (self.full - self.empty).mean())

    def measured(self, moved: Float[np.ndarray, " row"]) -> Measured:
        """Return the faithfulness of one circuit with its interval over distinct prompts."""
        whole = (self.full - self.empty) @ self.member
        found = ratio_estimate(moved @ self.member, whole)
        n = self.member.shape[1]
        return Measured(float(self.f(moved)), found.low, found.high, n, "prompts")

    @property
    def member(self) -> Float[np.ndarray, "row prompt"]:
        """Matrix that is 1 if a row belongs to a distinct prompt.

        A prompt with several foils has several rows and counts as one prompt.
        """
        return membership(np.array(self.behaviour.cases))


def membership(prompts: Int64[np.ndarray, " row"]) -> Float[np.ndarray, "row prompt"]:
    """Return the 0-1 matrix that tells which row belongs to which prompt number."""
    return (prompts[:, None] == np.arange(prompts.max() + 1)).astype(np.float64)


def completeness(
    judge: Judge, graph: Graph, kept: Bool[Tensor, " edge"], progress: Progress | None = None
) -> Measured:
    """Return the mean over the circuit's nodes v of abs(f(C without v) - f(M without v))."""
    ends = list(zip(*(column.tolist() for column in graph.ends.T), strict=True))
    touched = [{graph.sources[s], graph.node_of_reader[r]} for s, r in ends]
    nodes = sorted(set().union(*(t for t, k in zip(touched, kept.tolist(), strict=True) if k)))
    without = torch.tensor([
        [node not in t for t in touched] for node in nodes if node not in ("input", "logits")
    ])  # fmt: skip
    if not len(without):
        return Measured(0.0, None, None, 0, "nodes")
    inside = judge.moved(without & kept, progress)
    gap = inside - judge.moved(without, progress)
    # The sign of each node's gap is treated as fixed. The mean of absolute values is then a ratio
    # of means, which `measured` can give an interval.
    signs = np.sign(gap.mean(axis=-1, keepdims=True))
    return judge.measured((signs * gap).mean(axis=0) * np.sign((judge.full - judge.empty).mean()))


def minimality(
    judge: Judge, kept: Bool[Tensor, " edge"], *, seed: int = 0, progress: Progress | None = None
) -> Measured:
    """Return the share of edges whose removal moves f(C) by more than `MOVED`.

    With more than `MOST_EDGES` edges, a random sample of them is tried. The interval contains 95 %
    of the shares on resampled prompts, and on resampled edges if they were a sample.
    """
    edges = torch.nonzero(kept).flatten()
    draw = np.random.Generator(np.random.Philox(key=seed))
    sampled = len(edges) > MOST_EDGES
    if sampled:
        edges = edges[np.sort(draw.permutation(len(edges))[:MOST_EDGES])]
    without = kept & (torch.arange(len(kept)) != edges[:, None])
    moved = judge.moved(torch.cat([kept[None], without]), progress)
    change, whole = moved[0] - moved[1:], judge.full - judge.empty
    share = float((np.abs(judge.f(change)) > MOVED).mean())
    member = judge.member
    if member.shape[1] < 2:
        return Measured(share, None, None, len(edges), "edges")
    drawn, wholes = (resampled_means(one @ member, seed=seed) for one in (change, whole))
    moves = np.abs(drawn / wholes) > MOVED
    if sampled:
        again = draw.integers(len(edges), size=moves.shape)
        moves = np.take_along_axis(moves, again, axis=0)
    low, high = np.quantile(moves.mean(axis=0), [0.025, 0.975]).tolist()
    return Measured(share, low, high, len(edges), "edges")


def curves(
    judge: Judge,
    graph: Graph,
    worth: Float[Tensor, " edge"],
    *,
    progress: Progress | None = None,
) -> tuple[Curve, Curve]:
    """Return the curves of CPR and CMD as MIB defines them.

    Both are measured at ten shares of edges, with "top" selection and pruning: CPR by signed worth,
    CMD by absolute worth.
    """
    sizes = tuple(int(share * graph.n_edges) for share in SHARES)
    both = []
    for signed in (True, False):
        kept = torch.stack([
            select(graph, worth, n, selection="top", signed=signed) for n in sizes
        ])  # fmt: skip
        moved = judge.moved(kept, progress)
        left = tuple(kept.sum(dim=1).tolist())
        f = tuple(judge.f(moved).tolist())
        whole = judge.full - judge.empty
        # For CMD the height is abs(1 - f), with the sign of 1 - f treated as fixed.
        height = moved if signed else np.sign(1 - np.array(f))[:, None] * (whole - moved)
        area = judge.measured(_trapezoid(height))
        both.append(Curve(SHARES, sizes, left, f, area))
    return both[0], both[1]


def _trapezoid(height: Float[np.ndarray, "share row"]) -> Float[np.ndarray, " row"]:
    widths = np.diff(SHARES)[:, None]
    return (widths * (height[1:] + height[:-1]) / 2).sum(axis=0)
