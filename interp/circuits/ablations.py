"""Tests of a circuit under several ablations: what it keeps if its other edges carry other values.

A circuit found with paired corrupt prompts is a circuit of the *contrast*: where clean and corrupt
prompts agree, ablated edges carry what the clean run carries, and the circuit need not read it. An
ablated edge can instead carry the mean of its source over the clean prompts, or its value on
another clean prompt, which takes away everything that is particular to the prompt:

    corrupt   value on the corrupt prompt of the pair: keeps what both prompts of a pair share
    mean      mean over the clean prompts, position by position: keeps what all prompts share
    resample  value on another clean prompt: replaces everything by a consistent other prompt

Under each, faithfulness is (m(C) - m(empty)) / (m(full) - m(empty)), where the empty circuit
carries only ablated values. Beside it stand the share of prompts on which the circuit prefers the
answer to the foil, and the share on which the answer is its first choice of the whole vocabulary:
a circuit may order two tokens rightly and still predict neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.behaviours import Behaviour
from interp.circuits import edge_ablation
from interp.circuits.edge_ablation import MEMORY, STANDINS
from interp.circuits.faithfulness import Measured, membership
from interp.circuits.graph import graph_of
from interp.errors import BehaviourError
from interp.metrics import MetricOf, top1
from train.errors import nearest
from train.model import GPT
from train.progress import Progress
from train.short_repr import short_repr
from train.statistics import ratio_estimate, ratio_interval, wilson


__all__ = ["AblationTest", "ablation_tests"]


UNDEFINED = "refused: full and empty circuit score alike"


@dataclass(frozen=True)
class AblationTest:
    """Share of a behaviour that a circuit keeps under one ablation.

    Attributes:
        standin: What ablated edges carry: corrupt, mean or resample.
        n_edges: Number of edges kept.
        faithfulness: (m(C) - m(empty)) / (m(full) - m(empty)); None if the full and the empty
            circuit cannot be told apart on these prompts, because it is then a ratio of noise.
        above_foil: Share of prompts on which the circuit's logit of the answer is above the foil's;
            of several answers or foils, the weighted mean of their logits.
        top1: Share of prompts on which the answer, or one of several, has the circuit's highest
            logit.
        model_top1: The same share for the full model.
    """

    standin: str
    n_edges: int
    faithfulness: Measured | None
    above_foil: Measured
    top1: Measured
    model_top1: Measured

    __repr__ = short_repr

    def __str__(self) -> str:
        return (
            f"{self.standin}: {self.n_edges} edges, faithfulness {self.faithfulness or UNDEFINED}, "
            f"answer above foil {self.above_foil.value:.2f}, first choice {self.top1.value:.2f} "
            f"(full model {self.model_top1.value:.2f})"
        )


def ablation_tests(
    model: GPT,
    behaviour: Behaviour,
    kept: Bool[Tensor, "circuit edge"],
    *,
    metric: MetricOf = "logit-difference",
    standins: Sequence[str] = STANDINS,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> list[tuple[AblationTest, ...]]:
    """Test circuits under each ablation, on all prompts of a behaviour.

    With a single prompt, only "corrupt" is tested: there is no other prompt to average or draw.

    Args:
        kept: True for the edges of each circuit.
        standins: Ablations, of `STANDINS`.
        seed: Seed of the draw of other prompts (resample).

    Returns:
        The tests of each circuit, in the order of `standins`.

    Raises:
        BehaviourError: An ablation is unknown, or there is none.
        ModelError: The edges of the model cannot be ablated.

    Examples:
        >>> whole = torch.ones(1, circuits.graph_of(model).n_edges, dtype=torch.bool)
        >>> ((corrupt, mean, resample),) = circuits.ablation_tests(model, ioi, whole)
        >>> mean.standin, mean.faithfulness.value, mean.top1 == mean.model_top1
        ('mean', 1.0, True)
    """
    unknown = [one for one in standins if one not in STANDINS]
    if unknown or not standins:
        raise BehaviourError(
            f"no ablation is called {unknown[0]!r}{nearest(unknown[0], STANDINS)}"
            if unknown
            else f"no ablation was given; give some of {', '.join(STANDINS)}"
        )
    prompts = np.array(behaviour.cases)
    member = membership(prompts)
    if member.shape[1] < 2:
        standins = [one for one in standins if one == "corrupt"]
    ends = torch.tensor([[True], [False]]).expand(2, graph_of(model).n_edges)

    def scored(name: MetricOf, standin: str) -> Float[np.ndarray, "circuit row"]:
        found = edge_ablation.scores(
            model,
            behaviour,
            torch.cat([ends, kept]),
            metric=name,
            standin=standin,
            seed=seed,
            memory=memory,
            progress=progress,
        )
        return found.double().numpy()

    found: list[list[AblationTest]] = [[] for _ in kept]
    for standin in standins:
        scores = scored(metric, standin)
        differences = (
            scores if metric == "logit-difference" else scored("logit-difference", standin)
        )
        first = scored(top1, standin)
        whole = (scores[0] - scores[1]) @ member
        told = abs(whole.mean()) > 1e-6 and (
            len(whole) < 2 or ratio_interval(whole[None], whole) is not None
        )
        for i, tests in enumerate(found, start=2):
            part = None
            if told:
                share = ratio_estimate((scores[i] - scores[1]) @ member, whole)
                part = Measured(share.value, share.low, share.high, len(whole), "prompts")
            tests.append(
                AblationTest(
                    standin,
                    int(kept[i - 2].sum()),
                    part,
                    _share(differences[i] > 0, member),
                    _share(first[i] > 0, member),
                    _share(first[0] > 0, member),
                )
            )
    return [tuple(tests) for tests in found]


def _share(right: Bool[np.ndarray, " row"], member: Float[np.ndarray, "row prompt"]) -> Measured:
    """Return the share of prompts; a prompt with several foils counts by its share of rows."""
    n, share = member.shape[1], float((right @ member / member.sum(axis=0)).mean())
    low, high = wilson(share, n)
    return Measured(share, low, high, n, "prompts")
