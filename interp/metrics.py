"""Metrics: functions of a forward pass that give one number per prompt.

A metric declares which positions and which columns of the vocabulary it reads, and the patch engine
computes only those logits. The default, a logit difference at the last position, reads two columns
per prompt at one position, while a plain forward pass computes the whole [pos, vocab] table.
A metric may also need values at hook points, such as the attention of a head; the patch engine
computes logits only and refuses it.

The logit difference is the default because it is linear in the final residual stream up to the
final norm and shows components that work *against* the answer; probabilities miss such negative
components (Zhang & Nanda 2023, https://arxiv.org/abs/2309.16042).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.behaviours import Behaviour
from interp.errors import BehaviourError
from train.errors import nearest
from train.short_repr import short_repr


__all__ = [
    "METRICS",
    "Metric",
    "MetricLike",
    "MetricOf",
    "custom",
    "log_probability",
    "logit_difference",
    "made_for",
    "named",
    "probability",
    "resolve",
    "top1",
]

# `score(logits, row)`, or `score(logits, row, values)` if the metric has hooks: logits
# [row read column], the prompt index of every row, and the values by hook name.
Score = Callable[..., Float[Tensor, " row"]]
SHARE = "share of the clean-corrupt {}"


@dataclass(frozen=True, eq=False)
class Metric:
    """Function of a forward pass that gives one number per prompt.

    Attributes:
        name: Name, such as "logit difference".
        unit: Unit of one score, before any normalisation.
        score: Function from logits [row read column] and the prompt index of every row to one
            number per row; with `hooks`, also from the values at these by name, [row ...] each. The
            rows can be any number of prompts in any order.
        positions: Positions that are read, in order; negative ones count from the end; None for
            all.
        columns: Vocabulary columns that are read, in order; None for all.
        hooks: Hook points whose values the score needs; the patch engine refuses such a metric.
    """

    name: str
    unit: str
    score: Score
    positions: tuple[int, ...] | None = (-1,)
    columns: Int[Tensor, " column"] | None = None
    hooks: tuple[str, ...] = ()

    __repr__ = short_repr

    def reads(self, n_pos: int) -> list[int]:
        """Return the positions counted from 0, for prompts of `n_pos` tokens.

        Raises:
            BehaviourError: A position lies outside the prompts.
        """
        if self.positions is None:
            return list(range(n_pos))
        outside = [pos for pos in self.positions if not -n_pos <= pos < n_pos]
        if outside or not self.positions:
            raise BehaviourError(
                f"metric {self.name!r} reads position {outside[0] if outside else 'none'} of "
                f"prompts of {n_pos}"
            )
        return [pos % n_pos for pos in self.positions]

    def of_logits(
        self,
        logits: Float[Tensor, "row pos vocab"],
        row: Int[Tensor, " row"] | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, " row"]:
        """Return the scores of a forward pass, cut to the positions and columns that are read.

        Args:
            row: Prompt index of every row; None if the rows are all prompts in order.
            values: Values at the hook points, by name.

        Raises:
            BehaviourError: A position lies outside the prompts, or the values at a hook point are
                missing.
        """
        missing = [name for name in self.hooks if name not in (values or {})]
        if missing:
            raise BehaviourError(
                f"metric {self.name!r} needs the values at {missing[0]}, which are not "
                "computed here; give a metric of the logits"
            )
        if row is None:
            row = torch.arange(len(logits), device=logits.device)
        if self.positions is not None:
            logits = logits[:, self.reads(logits.shape[1])]
        if self.columns is not None:
            logits = logits[..., self.columns.to(logits.device)]
        return self.score(logits, row, values) if self.hooks else self.score(logits, row)


# A metric that can be made for any prompts: its name, or the function that makes it.
MetricOf = str | Callable[[Behaviour], Metric]
# Every way to give one metric. None stands for the logit difference.
MetricLike = Metric | MetricOf | None


def logit_difference(behaviour: Behaviour) -> Metric:
    """Return the metric "logit of the answer minus logit of the foil, at the last position".

    Examples:
        >>> metric = metrics.logit_difference(ioi)
        >>> tuple(metric.of_logits(model(ioi.clean)).shape), metric.unit
        ((64,), 'nats of log-odds')
    """
    columns, place = torch.cat([behaviour.answer, behaviour.foil]).unique(return_inverse=True)
    answer, foil = place.split(behaviour.n_prompts)

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        row, last = torch.arange(len(logits), device=logits.device), logits[:, -1]
        return last[row, answer.to(last.device)[prompt]] - last[row, foil.to(last.device)[prompt]]

    return Metric("logit difference", "nats of log-odds", score, columns=columns)


def log_probability(behaviour: Behaviour) -> Metric:
    """Return the metric "log-probability of the answer at the last position".

    It reads the whole vocabulary.

    Examples:
        >>> metric = metrics.log_probability(ioi)
        >>> round(metric.of_logits(model(ioi.clean)).mean().item(), 2)
        -0.04
    """

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        answer = behaviour.answer.to(logits.device)[prompt]
        return logits[:, -1].float().log_softmax(dim=-1).gather(1, answer[:, None])[:, 0]

    return Metric("log-probability", "nats", score)


def probability(behaviour: Behaviour) -> Metric:
    """Return the metric "probability of the answer at the last position", used by Meng et al. 2022.

    It reads the whole vocabulary.

    Examples:
        >>> metric = metrics.probability(ioi)
        >>> round(metric.of_logits(model(ioi.clean)).mean().item(), 2)
        0.96
    """
    log = log_probability(behaviour)
    return Metric("probability", "probability", lambda logits, row: log.score(logits, row).exp())


def top1(behaviour: Behaviour) -> Metric:
    """Return the metric "1 if the answer has the highest logit at the last position, else 0".

    It reads the whole vocabulary, and has no gradient: gradient methods cannot use it.

    Examples:
        >>> metric = metrics.top1(ioi)
        >>> metric.of_logits(model(ioi.clean)).mean().item() > 0.9
        True
    """

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        answer = behaviour.answer.to(logits.device)[prompt]
        return (logits[:, -1].argmax(dim=-1) == answer).float()

    return Metric("top-1", "share of prompts", score)


METRICS: dict[str, Callable[[Behaviour], Metric]] = {
    "logit-difference": logit_difference,
    "log-probability": log_probability,
    "probability": probability,
}


def named(name: str, behaviour: Behaviour) -> Metric:
    """Return the metric called `name`.

    Raises:
        BehaviourError: There is no metric of that name.

    Examples:
        >>> metrics.named("log-probability", ioi).unit
        'nats'
    """
    if name not in METRICS:
        raise BehaviourError(f"no metric is called {name!r}{nearest(name, METRICS)}")
    return METRICS[name](behaviour)


def resolve(metric: MetricLike, behaviour: Behaviour) -> Metric:
    """Return the metric that is given as an object, a name, a function or None.

    Raises:
        BehaviourError: There is no metric of that name.

    Examples:
        >>> metrics.resolve("probability", ioi).name, metrics.resolve(None, ioi).name
        ('probability', 'logit difference')
    """
    if metric is None:
        return logit_difference(behaviour)
    if isinstance(metric, str):
        return named(metric, behaviour)
    return metric if isinstance(metric, Metric) else metric(behaviour)


def made_for(metric: MetricLike, behaviour: Behaviour) -> Metric:
    """Return the metric of a behaviour that is a part of another, as circuits need it.

    Raises:
        BehaviourError: The metric is an object, which belongs to the prompts it was made for, or
            there is no metric of that name.

    Examples:
        >>> metrics.made_for(metrics.log_probability, ioi).unit
        'nats'
    """
    if isinstance(metric, Metric):
        raise BehaviourError(
            f"the metric {metric.name!r} is an object and belongs to all prompts; prompts are "
            "split here, so give its name or the function that makes it"
        )
    return resolve(metric, behaviour)


def custom(
    name: str,
    score: Callable[[Float[Tensor, "row read vocab"]], Float[Tensor, " row"]],
    *,
    unit: str,
    positions: tuple[int, ...] | None = (-1,),
) -> Metric:
    """Return a metric that depends on the logits only and not on the prompt's answer or foil.

    Examples:
        >>> def score(logits):
        ...     return logits[:, -1].amax(dim=-1)
        >>> largest = metrics.custom("largest logit", score, unit="nats")
        >>> patching.mlps(model, ioi, metric=largest).metric
        'largest logit'
    """
    return Metric(name, unit, lambda logits, row: score(logits), positions=positions)
