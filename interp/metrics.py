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
from inspect import signature
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.behaviours import Behaviour
from interp.errors import BehaviourError
from train.errors import nearest
from train.short_repr import short_repr


__all__ = [
    "LOGIT_DIFFERENCE",
    "METRICS",
    "UNITS",
    "Metric",
    "MetricLike",
    "MetricOf",
    "custom",
    "from_logits",
    "log_probability",
    "logit_difference",
    "made_for",
    "named",
    "probability",
    "probability_difference",
    "resolve",
    "top1",
]

# `score(logits, row)`, or `score(logits, row, values)` if the metric has hooks: logits
# [row read column], the prompt index of every row, and the values by hook name.
Score = Callable[..., Float[Tensor, " row"]]
LOGIT_DIFFERENCE = "logit difference"  # name of the metric unless another is given
UNITS = {  # unit of one score, by the name that a metric has in results
    LOGIT_DIFFERENCE: "nats of log-odds",
    "log-probability": "nats",
    "probability": "probability",
    "probability difference": "probability",
}
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
# Every way to give one metric. None stands for the logit difference. A function of logits
# [prompt pos vocab] gives one number per prompt.
MetricLike = Metric | MetricOf | Callable[[Tensor], Tensor] | None


def logit_difference(behaviour: Behaviour) -> Metric:
    """Return the metric "logit of the answer minus logit of the foil, at the last position".

    Of several answers or foils it is the mean of their logits, with their weights.

    Examples:
        >>> metric = metrics.logit_difference(ioi)
        >>> tuple(metric.of_logits(model(ioi.clean)).shape), metric.unit
        ((64,), 'nats of log-odds')
    """
    if behaviour.has_several:
        columns, contrast = behaviour.contrast()

        def mean(logits: Tensor, prompt: Tensor) -> Tensor:
            return (logits[:, -1] * contrast.to(logits)[prompt]).sum(-1)

        return Metric(LOGIT_DIFFERENCE, UNITS[LOGIT_DIFFERENCE], mean, columns=columns)
    columns, place = torch.cat([behaviour.answer, behaviour.foil]).unique(return_inverse=True)
    answer, foil = place.split(behaviour.n_prompts)

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        row, last = torch.arange(len(logits), device=logits.device), logits[:, -1]
        return last[row, answer.to(last.device)[prompt]] - last[row, foil.to(last.device)[prompt]]

    return Metric(LOGIT_DIFFERENCE, UNITS[LOGIT_DIFFERENCE], score, columns=columns)


def log_probability(behaviour: Behaviour) -> Metric:
    """Return the metric "log-probability of the answer at the last position".

    It reads the whole vocabulary. Of several answers it is the logarithm of their probabilities'
    sum, each times its weight relative to the heaviest; that sum is at most 1.

    Examples:
        >>> metric = metrics.log_probability(ioi)
        >>> round(metric.of_logits(model(ioi.clean)).mean().item(), 2)
        -0.04
    """

    if behaviour.has_several:
        columns, weights, _ = behaviour.weights()

        def of_sum(logits: Tensor, prompt: Tensor) -> Tensor:
            log_p = logits[:, -1].float().log_softmax(dim=-1)[:, columns.to(logits.device)]
            return (log_p + weights.to(log_p).log()[prompt]).logsumexp(dim=-1)

        return Metric("log-probability", UNITS["log-probability"], of_sum)

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        answer = behaviour.answer.to(logits.device)[prompt]
        return logits[:, -1].float().log_softmax(dim=-1).gather(1, answer[:, None])[:, 0]

    return Metric("log-probability", UNITS["log-probability"], score)


def probability(behaviour: Behaviour) -> Metric:
    """Return the metric "probability of the answer at the last position", used by Meng et al. 2022.

    It reads the whole vocabulary. Of several answers it is the sum of their probabilities, each
    times its weight relative to the heaviest: at most 1.

    Examples:
        >>> metric = metrics.probability(ioi)
        >>> round(metric.of_logits(model(ioi.clean)).mean().item(), 2)
        0.96
    """
    log = log_probability(behaviour)
    unit = UNITS["probability"]
    return Metric("probability", unit, lambda logits, row: log.score(logits, row).exp())


def top1(behaviour: Behaviour) -> Metric:
    """Return the metric "1 if an answer has the highest logit at the last position, else 0".

    It reads the whole vocabulary, and has no gradient: gradient methods cannot use it.

    Examples:
        >>> metric = metrics.top1(ioi)
        >>> metric.of_logits(model(ioi.clean)).mean().item() > 0.9
        True
    """
    columns, answers, _ = behaviour.weights()

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        first = logits[:, -1].argmax(dim=-1)
        right = (answers > 0).to(first.device)[prompt] & (
            columns.to(first.device) == first[:, None]
        )
        return right.any(dim=1).float()

    return Metric("top-1", "share of prompts", score)


def probability_difference(behaviour: Behaviour) -> Metric:
    """Return the metric "probability of the answers minus that of the foils, at the last position".

    Probabilities of several are summed, each times its weight relative to the heaviest, as Hanna et
    al. 2023 do for greater-than with equal weights (https://arxiv.org/abs/2305.00586). It lies
    between -1 and 1, and reads the whole vocabulary.

    Examples:
        >>> metric = metrics.probability_difference(ioi)
        >>> round(metric.of_logits(model(ioi.clean)).mean().item(), 2)
        0.96
    """
    columns, answers, foils = behaviour.weights()

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        p = logits[:, -1].float().softmax(dim=-1)[:, columns.to(logits.device)]
        return (p * (answers - foils).to(p)[prompt]).sum(-1)

    return Metric("probability difference", UNITS["probability difference"], score)


METRICS: dict[str, Callable[[Behaviour], Metric]] = {
    "logit-difference": logit_difference,
    "log-probability": log_probability,
    "probability": probability,
    "probability-difference": probability_difference,
}


def named(name: str, behaviour: Behaviour) -> Metric:
    """Return the metric called `name`, such as "logit-difference"; underscores do for hyphens.

    Raises:
        BehaviourError: There is no metric of that name.

    Examples:
        >>> metrics.named("log-probability", ioi).unit
        'nats'
    """
    known = name.replace("_", "-")
    if known not in METRICS:
        raise BehaviourError(f"no metric is called {name!r}{nearest(known, METRICS)}")
    return METRICS[known](behaviour)


def resolve(metric: MetricLike, behaviour: Behaviour) -> Metric:
    """Return the metric that is given as an object, a name, a function or None.

    A function that takes a `behaviour` (by that name, or annotated as `Behaviour`) makes a metric.
    Any other is a function of the logits of all prompts, see `from_logits`.

    Raises:
        BehaviourError: There is no metric of that name.

    Examples:
        >>> metrics.resolve("probability", ioi).name, metrics.resolve(None, ioi).name
        ('probability', 'logit difference')
        >>> def mine(logits):
        ...     return logits[range(ioi.n_prompts), -1, ioi.answer]
        >>> metrics.resolve(mine, ioi).name
        'mine'
    """
    if metric is None:
        return logit_difference(behaviour)
    if isinstance(metric, str):
        return named(metric, behaviour)
    if isinstance(metric, Metric):
        return metric
    if _makes_metric(metric):
        return cast("Callable[[Behaviour], Metric]", metric)(behaviour)
    return from_logits(cast("Callable[[Tensor], Tensor]", metric), behaviour)


def _makes_metric(function: Callable[..., object]) -> bool:
    """Return whether a function makes a metric of a behaviour; otherwise it reads logits."""
    try:
        parameters = [*signature(function).parameters.values()]
    except (TypeError, ValueError):  # of C code there may be no signature
        return False
    kinds = [str(one.annotation) for one in parameters[:1]]
    return bool(kinds) and (parameters[0].name == "behaviour" or "Behaviour" in kinds[0])


def from_logits(function: Callable[[Tensor], Tensor], behaviour: Behaviour) -> Metric:
    """Return the metric that a function of logits [prompt pos vocab] measures, one number a prompt.

    The function gets the logits of all prompts, in their order and at every position, so that it
    can look up an answer by the index of a prompt. A number must depend on the logits of its own
    prompt only: the engine computes some prompts at a time, and fills the others with zeros.
    `custom` reads fewer logits and is faster.

    Raises:
        BehaviourError: On use, the function does not return one number per prompt.

    Examples:
        >>> def answer_logit(logits):
        ...     return logits[torch.arange(len(logits)), -1, ioi.answer]
        >>> metric = metrics.from_logits(answer_logit, ioi)
        >>> torch.equal(metric.of_logits(model(ioi.clean)), answer_logit(model(ioi.clean)))
        True
    """
    n, name = behaviour.n_prompts, getattr(function, "__name__", type(function).__name__)
    name = "a function of logits" if name == "<lambda>" else name

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        found = logits.new_empty(len(logits))
        # The k-th appearances of prompts among the rows, together: each prompt at most once.
        turns = _appearances(prompt)
        for turn in turns.unique():
            rows = (turns == turn).nonzero()[:, 0]
            whole = logits.new_zeros((n, *logits.shape[1:])).index_put(
                (prompt[rows],), logits[rows]
            )
            scores = function(whole)
            if not isinstance(scores, Tensor) or scores.shape != (n,):
                shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise BehaviourError(
                    f"the metric {name!r} returned {shape}, and one number per prompt is needed, "
                    f"[{n}]; leave out its last mean or sum"
                )
            found = found.index_put((rows,), scores[prompt[rows]].to(found))
        return found

    return Metric(name, f"units of {name}", score, positions=None)


def _appearances(prompt: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Count for each row how many rows before it have the same prompt."""
    order = prompt.argsort(stable=True)
    sorted_prompts = prompt[order]
    places = torch.arange(len(prompt), device=prompt.device)
    begins = torch.searchsorted(sorted_prompts, sorted_prompts)
    return torch.empty_like(places).scatter(0, order, places - begins)


def made_for(metric: MetricLike, behaviour: Behaviour) -> Metric:
    """Return the metric of a behaviour that is a part of another, as circuits need it.

    Raises:
        BehaviourError: The metric is an object or a function of logits, which belongs to the
            prompts it was made for, or there is no metric of that name.

    Examples:
        >>> metrics.made_for(metrics.log_probability, ioi).unit
        'nats'
    """
    of_all = callable(metric) and not isinstance(metric, Metric) and not _makes_metric(metric)
    if isinstance(metric, Metric) or of_all:
        name = metric.name if isinstance(metric, Metric) else getattr(metric, "__name__", "given")
        raise BehaviourError(
            f"the metric {name!r} {'reads logits' if of_all else 'is an object'} and belongs to "
            "all prompts; prompts are split here, so give its name or the function that makes it "
            "from a behaviour"
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
        >>> patching.mlps(model, ioi, metric=largest, check=False).metric
        'largest logit'
    """
    return Metric(name, unit, lambda logits, row: score(logits), positions=positions)
