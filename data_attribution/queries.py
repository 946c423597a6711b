"""Queries: numbers that can be measured on a model and differentiated.

A query is a metric and the prompts on which it is measured: the logit difference of a behaviour,
the attention of one head, the value along a probe's direction. Attribution follows its gradient to
the documents, and a counterfactual measures the same query again on the retrained model. A higher
number means more of the behaviour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn import functional

from data_attribution.errors import EvidenceError, QueryError
from interp import metrics
from interp.behaviours import Behaviour
from interp.components import HookedModel, device_of
from interp.metrics import Metric, MetricLike
from train.data import IGNORED, Tokenizer
from train.short_repr import short_repr
from train.statistics import n_prompts


__all__ = [
    "LONGEST",
    "TEXT",
    "Query",
    "encoded",
    "measure_query",
    "query_for",
    "query_of_behaviour",
    "query_of_continuations",
    "query_of_text",
    "query_scores",
]

ROWS = 64
LONGEST = 1_000_000  # tokens of a text
TEXT = "log-probability of the text"  # name of a text query that has no other name


@dataclass(frozen=True, eq=False)
class Query:
    """A metric and a batch of prompts on which it is measured.

    Attributes:
        name: Name for tables and files.
        tokens: The prompts.
        metric: Function of a forward pass that gives one number per prompt.
        apart: Whether equal prompts count as separate cases, as the windows of one text do.
        groups: Group of each prompt, if prompts of a group are one case (`Behaviour.groups`).

    Examples:
        >>> query = queries.query_of_behaviour(fact)
        >>> query.name, query.unit, tuple(query.tokens.shape)
        ('fact:runethi', 'nats of log-odds', (50, 6))
        >>> bool(queries.measure_query(model, query).mean() > 0)
        True
    """

    name: str
    tokens: Int[Tensor, "prompt pos"]
    metric: Metric
    apart: bool = False
    groups: tuple[int, ...] = ()

    __repr__ = short_repr

    @property
    def unit(self) -> str:
        """Return the unit of one number."""
        return self.metric.unit

    @property
    def cases(self) -> Int64[np.ndarray, " prompt"]:
        """Return the case of each prompt, from 0: its group, if there are groups.

        Otherwise equal prompts share one unless `apart`.
        """
        if self.groups:
            return np.unique(self.groups, return_inverse=True)[1]
        return np.arange(len(self.tokens)) if self.apart else n_prompts(self.tokens)


def query_of_behaviour(behaviour: Behaviour, metric: MetricLike = None) -> Query:
    """Return the query for a behaviour on its clean prompts.

    Args:
        metric: Metric of the behaviour, as an object, a name or a function of the behaviour; None
            for the logit difference.

    Raises:
        BehaviourError: There is no metric of that name.

    Examples:
        >>> query = queries.query_of_behaviour(ioi)
        >>> query.name, query.unit
        ('ioi', 'nats of log-odds')
        >>> queries.query_of_behaviour(ioi, "probability").unit
        'probability'
    """
    read = metrics.resolve(metric, behaviour)
    return Query(behaviour.name, behaviour.clean, read, groups=behaviour.groups)


def query_of_text(
    text: str | Sequence[int],
    tokenizer: Tokenizer,
    *,
    n_ctx: int,
    context: str | Sequence[int] = (),
    name: str = TEXT,
) -> Query:
    """Return the query for the mean log-probability of a text's tokens.

    The text is preceded by an end-of-text token and the context. If that is longer than `n_ctx`, it
    is cut into windows as a document is, one prompt per window; the prompts are weighted so that
    their mean is the mean over all tokens of the text.

    Args:
        text: A text, or token ids.
        context: Text or token ids before `text`, whose own log-probability is not counted.

    Raises:
        QueryError: The text holds no token.

    Examples:
        >>> text = "the capital of runethi is koreskul ."
        >>> query = queries.query_of_text(text, run.tokenizer, n_ctx=64)
        >>> query.unit, round(queries.measure_query(model, query).mean().item(), 1)
        ('nats a token', -1.4)
    """
    before, asked = (_ids(part, tokenizer) for part in (context, text))
    if not asked:
        raise QueryError(f"{name!r} is empty: it holds no token that could be probable")
    ids = torch.tensor([tokenizer.eot, *before, *asked])
    targets = torch.where(torch.arange(1, len(ids)) > len(before), ids[1:], IGNORED)
    rows = -(-len(targets) // n_ctx)
    width = min(len(targets), n_ctx)
    missing = rows * width - len(targets)
    tokens = functional.pad(ids[:-1], (0, missing), value=tokenizer.eot).view(rows, width)
    targets = functional.pad(targets, (0, missing), value=IGNORED).view(rows, width)
    # Windows that hold only context have no target and are dropped.
    spoken = (targets != IGNORED).any(dim=1)
    tokens, targets = tokens[spoken], targets[spoken]
    # With this factor the mean over windows is -(sum of losses) / (number of tokens of the text).
    share = len(tokens) / len(asked)

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        wanted = targets.to(logits.device)[prompt]
        losses = functional.cross_entropy(
            logits.float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        )
        return -share * losses.sum(dim=1)

    return Query(name, tokens, Metric(TEXT, "nats a token", score, positions=None), apart=True)


def query_of_continuations(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    eot: int,
    *,
    name: str,
    groups: Sequence[int] = (),
) -> Query:
    """Return the query for the mean log-probability of each continuation after its context.

    Every prompt is an end-of-text token, the context and the continuation, and counts as one case,
    however long its continuation is; with groups, a group does.

    Args:
        pairs: Token ids of a context and of its continuation, for each prompt.
        eot: The end-of-text token.
        groups: Group of each pair, if pairs of a group are one case.

    Raises:
        QueryError: There is no pair, a continuation is empty, or groups are not as many as pairs.

    Examples:
        >>> ids = run.tokenizer.encode("the capital of runethi is koreskul").tolist()
        >>> pairs = [(ids[:-1], ids[-1:])]
        >>> query = queries.query_of_continuations(pairs, store.eot, name="capital")
        >>> query.unit, round(queries.measure_query(model, query).item(), 1)
        ('nats a token', -0.2)
    """
    if not pairs or not all(len(continuation) for _, continuation in pairs):
        raise QueryError(f"{name!r} holds no continuation that could be probable; give one or more")
    if groups and len(groups) != len(pairs):
        raise QueryError(
            f"{name!r} has {len(pairs)} continuations and {len(groups)} groups; give each its group"
        )
    rows = [[eot, *map(int, context), *map(int, continuation)] for context, continuation in pairs]
    width = max(map(len, rows)) - 1
    tokens = torch.full((len(rows), width), eot)
    targets = torch.full((len(rows), width), IGNORED)
    for number, (row, (context, continuation)) in enumerate(zip(rows, pairs, strict=True)):
        tokens[number, : len(row) - 1] = torch.tensor(row[:-1])
        first = len(context)
        targets[number, first : first + len(continuation)] = torch.tensor(row[first + 1 :])

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        wanted = targets.to(logits.device)[prompt]
        losses = functional.cross_entropy(
            logits.float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        )
        return -losses.sum(dim=1) / (wanted != IGNORED).sum(dim=1)

    metric = Metric("log-probability of the continuation", "nats a token", score, positions=None)
    return Query(name, tokens, metric, apart=True, groups=tuple(groups))


def query_for(
    target: str | Behaviour | None,
    query: Query | None = None,
    metric: MetricLike = None,
    *,
    tokenizer: Tokenizer,
    n_ctx: int,
) -> Query:
    """Return `query` if there is one, else the query for the target.

    Raises:
        EvidenceError: There is neither a target nor a query, or a metric is given for something
            that already is a number.
        BehaviourError: There is no metric of that name.
        QueryError: The text is empty or too long.

    Examples:
        >>> queries.query_for(ioi, tokenizer=run.tokenizer, n_ctx=64).name
        'ioi'
    """
    ids = encoded(target, tokenizer) if isinstance(target, str) else []
    if metric is not None and (ids or query is not None):
        name = "the probability of a text" if query is None else repr(query.name)
        extra = getattr(metric, "name", getattr(metric, "__name__", metric))
        raise EvidenceError(
            f"{name} is a number already, and the metric {extra} was given beside it; leave "
            "one of them out"
        )
    if query is not None:
        return query
    if target is None:
        raise EvidenceError("nothing was asked; give a text, a behaviour or a question")
    if isinstance(target, str):
        return query_of_text(ids, tokenizer, n_ctx=n_ctx)
    return query_of_behaviour(target, metric)


def encoded(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a text to be traced.

    Raises:
        QueryError: It is empty, or longer than `LONGEST` tokens.

    Examples:
        >>> queries.encoded("the capital of runethi", run.tokenizer)
        [794, 112, 562, 696]
    """
    if not text.strip():
        raise QueryError("the text is empty; give some words to trace")
    ids = tokenizer.encode(text).tolist()
    if len(ids) > LONGEST:
        raise QueryError(
            f"the text has {len(ids):,} tokens, and at most {LONGEST:,} are traced at once; "
            "trace its parts"
        )
    return ids


def _ids(part: str | Sequence[int], tokenizer: Tokenizer) -> list[int]:
    return [int(one) for one in (tokenizer.encode(part) if isinstance(part, str) else part)]


def query_scores(
    model: HookedModel, question: Query, prompt: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Return the numbers of some prompts, differentiable where gradients are enabled.

    Examples:
        >>> query = queries.query_of_behaviour(ioi)
        >>> scores = queries.query_scores(model, query, torch.tensor([0, 1]))
        >>> tuple(scores.shape), scores.requires_grad
        ((2,), True)
    """
    metric, values = question.metric, dict[str, Tensor]()

    def keeping(name: str) -> tuple[str, Callable[..., None]]:
        return name, lambda value, hook: values.__setitem__(name, value)

    tokens = question.tokens[prompt].to(device_of(model))
    logits = model.run_with_hooks(tokens, fwd_hooks=[keeping(name) for name in metric.hooks])
    return metric.of_logits(logits, prompt.to(logits.device), values)


@torch.no_grad()
def measure_query(model: HookedModel, question: Query) -> Float[np.ndarray, " prompt"]:
    """Return the numbers of all prompts.

    Examples:
        >>> query = queries.query_of_behaviour(ioi)
        >>> queries.measure_query(model, query).shape
        (64,)
    """
    rows = torch.arange(len(question.tokens)).split(ROWS)
    return torch.cat([query_scores(model, question, row) for row in rows]).double().cpu().numpy()
