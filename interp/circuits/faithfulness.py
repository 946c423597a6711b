"""Whether a circuit does what the model does, and whether it had to be this one.

m is the metric's mean over prompts, C the circuit, M the model, f(C) = (m(C) - m(empty)) /
(m(M) - m(empty)): 1 does all that the model does, 0 nothing.

    faithfulness     f(C)
    complement       f(M without the edges of C): 0 when nothing outside does it too
    completeness     mean over nodes v of abs(f(C without v) - f(M without v)): 0 when taking a node
                     from the circuit does what taking it from the model does (Wang et al. 2022,
                     https://arxiv.org/abs/2211.00593, sets of one node)
    minimality       share of edges without which f(C) moves by more than 0.01
    CPR              area under f over the share of edges kept, strongest first, signed
    CMD              area of abs(1 - f), strongest by size first; 0 is best (both as MIB defines
                     them, Mueller et al. 2025, https://arxiv.org/abs/2504.13151)

Everything is run exactly (`interp.circuits.edge_ablation`). Intervals are over prompts and take the
edges as given. What another circuit, another model or other prompts would have given is in
`interp.circuits.controls`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp.behaviours import Behaviour
from interp.circuits import edge_ablation
from interp.circuits.edge_ablation import MetricOf
from interp.circuits.edge_selection import select
from interp.circuits.graph import Graph, graph_of
from interp.errors import ContrastError
from interp.statistics import n_prompts, ratio_interval, resampled_means
from train.model import GPT
from train.progress import Progress


__all__ = ["SHARES", "Curve", "Judge", "Measured"]
__all__ += ["completeness", "curves", "membership", "minimality"]

# Shares of all edges at which MIB measures.
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MOVED = 0.01  # a change of f that counts
MOST_EDGES = 100  # of which minimality is measured; of more a sample is drawn


@dataclass(frozen=True)
class Measured:
    """A number, its 95 % interval (None where there is none), and how many of what it rests on."""

    value: float
    low: float | None
    high: float | None
    n: int
    of: str

    def __str__(self) -> str:
        bounds = "no interval" if self.low is None else f"[{self.low:.3f}, {self.high:.3f}]"
        of = self.of.replace("prompts", "prompt") if self.n == 1 else self.of
        return f"{self.value:.3f} {bounds} ({self.n} {of})"


@dataclass(frozen=True)
class Curve:
    """f over the share of edges kept. `n_edges` were asked for, `kept` are left when pruned."""

    shares: tuple[float, ...]
    n_edges: tuple[int, ...]
    kept: tuple[int, ...]
    f: tuple[float, ...]
    area: Measured


@dataclass(frozen=True, eq=False)
class Judge:
    """A model, the prompts that judge, and what the full model and the empty circuit score there.

    Attributes:
        full: Of the full model, a row each.
        empty: Of the empty circuit: the corrupt run.
    """

    model: GPT
    behaviour: Behaviour
    metric: MetricOf
    memory: int
    full: Float[np.ndarray, " row"]
    empty: Float[np.ndarray, " row"]

    @classmethod
    def of(cls, model: GPT, behaviour: Behaviour, *, metric: MetricOf, memory: int) -> "Judge":
        """Two plain runs.

        Raises:
            ContrastError: The metric is the same on clean and corrupt prompts.
        """
        graph = graph_of(model)
        kept = torch.stack([torch.ones(graph.n_edges), torch.zeros(graph.n_edges)]).bool()
        scores = edge_ablation.scores(model, behaviour, kept, metric=metric, memory=memory)
        full, empty = scores.double().numpy()
        if not abs(full.mean() - empty.mean()) > 1e-6:
            raise ContrastError(
                f"behaviour {behaviour.name!r} scores {full.mean():.3g} on clean and "
                f"{empty.mean():.3g} on corrupt prompts; a circuit needs prompts that the model "
                "tells apart"
            )
        return cls(model, behaviour, metric, memory, full, empty)

    def moved(
        self, kept: Bool[Tensor, "circuit edge"], progress: Progress | None = None
    ) -> Float[np.ndarray, "circuit row"]:
        """m(C) - m(empty) on every row."""
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
        """Faithfulness of what was moved."""
        return np.asarray(moved.mean(axis=-1) / (self.full - self.empty).mean())

    def measured(self, moved: Float[np.ndarray, " row"]) -> Measured:
        """The same of one circuit with its interval; rows of one prompt count once."""
        whole = (self.full - self.empty) @ self.member
        bounds = ratio_interval((moved @ self.member)[None], whole)
        low, high = (None, None) if bounds is None else (float(one[0]) for one in bounds)
        return Measured(float(self.f(moved)), low, high, self.member.shape[1], "prompts")

    @property
    def member(self) -> Float[np.ndarray, "row prompt"]:
        """1 where a row is of a distinct prompt: one prompt beside many foils is one case."""
        return membership(n_prompts(self.behaviour.clean))


def membership(prompts: Int64[np.ndarray, " row"]) -> Float[np.ndarray, "row prompt"]:
    """Prompt numbers as columns of ones."""
    return (prompts[:, None] == np.arange(prompts.max() + 1)).astype(np.float64)


def completeness(
    judge: Judge, graph: Graph, kept: Bool[Tensor, " edge"], progress: Progress | None = None
) -> Measured:
    """Mean over the circuit's nodes of abs(f(C without v) - f(M without v))."""
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
    # The signs are taken as given: then the mean of sizes is a ratio of means like any other.
    signs = np.sign(gap.mean(axis=-1, keepdims=True))
    return judge.measured((signs * gap).mean(axis=0) * np.sign((judge.full - judge.empty).mean()))


def minimality(
    judge: Judge, kept: Bool[Tensor, " edge"], *, seed: int = 0, progress: Progress | None = None
) -> Measured:
    """Share of edges whose removal moves f(C) by more than `MOVED`; of many a sample is tried.

    The interval holds 95 % of the shares on prompts drawn again, and on edges drawn again when they
    were a sample.
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
    """CPR and CMD as MIB has them: top edges, signed and by size, pruned, at ten shares."""
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
        # abs(1 - f) of a ratio of means, its sign taken as given.
        height = moved if signed else np.sign(1 - np.array(f))[:, None] * (whole - moved)
        area = judge.measured(_trapezoid(height))
        both.append(Curve(SHARES, sizes, left, f, area))
    return both[0], both[1]


def _trapezoid(height: Float[np.ndarray, "share row"]) -> Float[np.ndarray, " row"]:
    widths = np.diff(SHARES)[:, None]
    return (widths * (height[1:] + height[:-1]) / 2).sum(axis=0)
