"""What is measured at the end of a forward pass: one number per prompt, and what it reads.

A metric declares the positions and the vocabulary columns that it reads, so that the patch engine
computes no others: the default, a logit difference at the last position, needs two columns of one
position where a forward pass fills the whole table.

The logit difference is linear in the final residual stream up to its norm, sees what works
*against* the answer, and is the default; probabilities miss negative components (Zhang & Nanda
2023, https://arxiv.org/abs/2309.16042).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.behaviours import Behaviour
from interp.errors import BehaviourError
from train.errors import nearest


__all__ = [
    "METRICS",
    "Metric",
    "custom",
    "log_probability",
    "logit_difference",
    "named",
    "probability",
]

Score = Callable[[Float[Tensor, "row read column"], Int[Tensor, " row"]], Float[Tensor, " row"]]
SHARE = "share of the clean-corrupt {}"


@dataclass(frozen=True, eq=False)
class Metric:
    """A number per prompt.

    Attributes:
        name: "logit difference" and the like.
        unit: Of one score, before it is divided by anything.
        score: Given logits [row read column] and the prompt of every row, one number a row. Rows
            come in any number and order.
        positions: What it reads, in order; negative from the end.
        columns: Vocabulary columns it reads, in order; None: all.
    """

    name: str
    unit: str
    score: Score
    positions: tuple[int, ...] = (-1,)
    columns: Int[Tensor, " column"] | None = None

    def reads(self, n_pos: int) -> list[int]:
        """The positions, counted from 0.

        Raises:
            BehaviourError: A position lies outside the prompts.
        """
        outside = [pos for pos in self.positions if not -n_pos <= pos < n_pos]
        if outside or not self.positions:
            raise BehaviourError(
                f"metric {self.name!r} reads position {outside[0] if outside else 'none'} of "
                f"prompts of {n_pos}"
            )
        return [pos % n_pos for pos in self.positions]

    def of_logits(self, logits: Float[Tensor, "prompt pos vocab"]) -> Float[Tensor, " prompt"]:
        """The scores of a whole forward pass."""
        read = logits[:, self.reads(logits.shape[1])]
        if self.columns is not None:
            read = read[..., self.columns.to(logits.device)]
        return self.score(read, torch.arange(len(logits), device=logits.device))


def logit_difference(behaviour: Behaviour) -> Metric:
    """Logit of the answer minus logit of the foil at the last position."""
    columns, place = torch.cat([behaviour.answer, behaviour.foil]).unique(return_inverse=True)
    answer, foil = place.split(behaviour.n_prompts)

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        row, last = torch.arange(len(logits), device=logits.device), logits[:, -1]
        return last[row, answer.to(last.device)[prompt]] - last[row, foil.to(last.device)[prompt]]

    return Metric("logit difference", "nats of log-odds", score, columns=columns)


def log_probability(behaviour: Behaviour) -> Metric:
    """Log-probability of the answer at the last position. Reads the whole vocabulary."""

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        answer = behaviour.answer.to(logits.device)[prompt]
        return logits[:, -1].float().log_softmax(dim=-1).gather(1, answer[:, None])[:, 0]

    return Metric("log-probability", "nats", score)


def probability(behaviour: Behaviour) -> Metric:
    """Probability of the answer at the last position: what Meng et al. 2022 trace."""
    log = log_probability(behaviour)
    return Metric("probability", "probability", lambda logits, row: log.score(logits, row).exp())


METRICS: dict[str, Callable[[Behaviour], Metric]] = {
    "logit-difference": logit_difference,
    "log-probability": log_probability,
    "probability": probability,
}


def named(name: str, behaviour: Behaviour) -> Metric:
    """The metric of a name, for the command line.

    Raises:
        BehaviourError: No such metric.
    """
    if name not in METRICS:
        raise BehaviourError(f"no metric is called {name!r}{nearest(name, METRICS)}")
    return METRICS[name](behaviour)


def custom(
    name: str,
    score: Callable[[Float[Tensor, "row read vocab"]], Float[Tensor, " row"]],
    *,
    unit: str,
    positions: tuple[int, ...] = (-1,),
) -> Metric:
    """A metric of the logits alone, whichever prompt they belong to."""
    return Metric(name, unit, lambda logits, row: score(logits), positions=positions)
