"""Queries about one component: where a head attends, how much of a direction a site holds.

The score of a component is a function of the weights, as a behaviour is, so one can ask which
documents taught *it*. This is the probe function of Mechanistic Data Attribution (Chen et al. 2026,
https://arxiv.org/abs/2601.21996), which followed one head's prefix-matching score. Here each score
is a `Query` whose metric reads values at a hook point: every method that follows gradients and
every retrained run can answer it.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data_attribution.errors import QueryError
from data_attribution.queries import Query
from interp import components
from interp.behaviours import Behaviour
from interp.components import OF_HEADS, Component, device_of
from interp.heads import attended_positions, readout, repeated_tokens
from interp.metrics import Metric
from train.errors import nearest
from train.model import GPT
from train.runs import Run


__all__ = [
    "NAMED",
    "attention",
    "direct_effect",
    "named",
    "prefix_matching",
    "previous_token",
    "probe_direction",
]

NAMED = ("direct-effect", "prefix-matching", "previous-token")
LENGTH = 24  # words of a sequence before it repeats


def named(
    name: str, run: Run, behaviour: Behaviour | None = None, *, n: int = 64, seed: int = 0
) -> Query:
    """Return the query for a name of `NAMED` and a head, such as "prefix-matching:L1H0".

    Args:
        behaviour: Behaviour for a direct effect.
        n: Number of sequences drawn. They are as long as the context allows, at most two times
            `LENGTH` words.
        seed: Random seed for drawing the sequences.

    Raises:
        QueryError: There is no such query or head, or a direct effect is requested without a
            behaviour.
        ModelError: The name of the head is not the name of a component.

    Examples:
        >>> query = component_queries.named("prefix-matching:L1H0", run)
        >>> query.name, round(queries.measure_query(model, query).mean().item(), 1)
        ('induction score of L1H0', 0.8)
    """
    kind, _, head = name.partition(":")
    if kind not in NAMED:
        raise QueryError(f"no question is called {kind!r}{nearest(kind, NAMED)}")
    if not head:
        raise QueryError(f"{name!r} names no head; write {kind}:L1H0")
    place, config = _head(head), run.config
    if place.layer >= config.n_layers or (place.head or 0) >= config.n_heads:
        raise QueryError(
            f"there is no head {head}: the model has layers 0 to {config.n_layers - 1} of heads 0 "
            f"to {config.n_heads - 1}"
        )
    if kind == "direct-effect":
        if behaviour is None:
            raise QueryError(
                f"{name!r} is an effect on a behaviour, and none was given; run `openbook trace "
                f"documents RUN BEHAVIOUR --metric {name}`"
            )
        return direct_effect(run.load(), behaviour, head)
    ask = prefix_matching if kind == "prefix-matching" else previous_token
    return ask(run, head, n=n, length=min(LENGTH, (config.n_ctx - 1) // 2), seed=seed)


def prefix_matching(
    source: object, head: str, *, n: int = 64, length: int = LENGTH, seed: int = 0
) -> Query:
    """Return a query for how much a head attends from a repeated token to the token after its copy.

    It is measured on random tokens that repeat, drawn from the vocabulary of a run or model
    (`interp.heads.attention_scores`): the score of an induction head (Olsson et al. 2022).

    Examples:
        >>> query = component_queries.prefix_matching(run, "L1H0", n=8)
        >>> query.name, tuple(query.tokens.shape)
        ('induction score of L1H0', (8, 49))
    """
    tokens = repeated_tokens(source, n=n, length=length, seed=seed)
    return attention(tokens, head, "induction")


def previous_token(
    source: object, head: str, *, n: int = 64, length: int = LENGTH, seed: int = 0
) -> Query:
    """Return a query for how much a head attends to the previous token, on the same sequences.

    Examples:
        >>> query = component_queries.previous_token(run, "L0H1", n=8)
        >>> query.name, tuple(query.tokens.shape)
        ('previous token score of L0H1', (8, 49))
    """
    tokens = repeated_tokens(source, n=n, length=length, seed=seed)
    return attention(tokens, head, "previous token")


def attention(tokens: Int[Tensor, "prompt pos"], head: str, kind: str) -> Query:
    """Return a query for a head's mean attention where heads of a kind look, in [0, 1].

    Args:
        tokens: Tokens as `interp.heads.repeated_tokens` makes them.
        head: Name of the head, such as "L1H0".
        kind: Kind as in `interp.heads.attended_positions`: induction, previous token or duplicate
            token.

    Raises:
        QueryError: The name is not the name of a head.

    Examples:
        >>> tokens = heads.repeated_tokens(run, n=8)
        >>> component_queries.attention(tokens, "L1H0", "induction").name
        'induction score of L1H0'
    """
    place = _head(head)
    query, key = attended_positions(tokens, kind)
    hook = f"blocks.{place.layer}.attn.hook_pattern"

    def score(logits: Tensor, prompt: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return _of_head(values[hook], 1, place)[:, query, key].float().mean(dim=1)

    name = f"{kind} score of {head}"
    return Query(name, tokens, Metric(name, "mean attention", score, hooks=(hook,)))


def probe_direction(
    tokens: Int[Tensor, "prompt pos"],
    place: str,
    direction: Float[Tensor, "*prompt d"],
    *,
    name: str | None = None,
) -> Query:
    """Return a query for a component's value along a direction: a probe's score without its bias.

    Args:
        place: Component, such as "L1.resid_post@5" or "L0H3". Without a position the last one is
            read; with several, their mean.
        direction: Direction as a probe was fitted, or one per prompt. It stays fixed when the model
            changes.

    Raises:
        QueryError: The component is an attention pattern or a single neuron, which holds no vector.

    Examples:
        >>> direction = torch.ones(128)
        >>> query = component_queries.probe_direction(ioi.clean, "L1.resid_post", direction)
        >>> query.name, query.metric.hooks
        ('direction at L1.resid_post', ('blocks.1.hook_resid_post',))
    """
    where = components.parse(place)
    if where.site in ("pattern", "neuron"):
        raise QueryError(f"{place!r} holds no vector a direction could lie in; take L1.resid_post")
    at = list(where.positions or (-1,))

    def score(logits: Tensor, prompt: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        value = values[where.hook][:, at]
        if where.site in OF_HEADS:
            value = _of_head(value, 2, where)
        along = direction.to(value)
        if along.ndim == 2:
            along = along[prompt.to(value.device), None]
        return (value * along).sum(dim=-1).mean(dim=1)

    name = name or f"direction at {place}"
    return Query(name, tokens, Metric(name, "along direction", score, hooks=(where.hook,)))


@torch.no_grad()
def direct_effect(model: GPT, behaviour: Behaviour, head: str) -> Query:
    """Return a query for what a head directly adds to a behaviour's logit difference at the end.

    "At the end" is the last position. The direction in which the head's output is read (its own
    output weights, the final norm's scale and gain, the unembedding) is that of `model` on each
    prompt and stays fixed. The number changes with what the head attends to and with its values,
    not with how they are read.

    Args:
        model: Model whose weights define the direction; it must be pre-norm.

    Raises:
        QueryError: The name is not the name of a head, or the last residual stream is not the sum
            of what the heads write.

    Examples:
        >>> query = component_queries.direct_effect(model, ioi, "L1H0")
        >>> query.name, queries.measure_query(model, query).shape
        ('direct effect of L1H0 on ioi', (64,))
    """
    if model.cfg.no_residual_sum:
        raise QueryError(
            f"no direct effect of {head}: {model.cfg.no_residual_sum}, so logits are no sum of "
            "what heads write; ask for the score of the head instead"
        )
    place, last = _head(head), f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    _, cache = model.run_with_cache(behaviour.clean.to(device_of(model)), names_filter=[last])
    read, _ = readout(model, behaviour, {last: cache[last].double()})
    direction = (read @ model.W_O[place.layer, place.head].double().T).float()
    name = f"direct effect of {head} on {behaviour.name}"
    query = probe_direction(behaviour.clean, head, direction, name=name)
    return replace(query, metric=replace(query.metric, unit="nats of log-odds"))


def _of_head(values: Tensor, axis: int, place: Component) -> Tensor:
    n_heads, head = values.shape[axis], place.head or 0
    if head >= n_heads:
        raise QueryError(f"layer {place.layer} has heads 0 to {n_heads - 1}, and no {head}")
    return values.select(axis, head)


def _head(name: str) -> Component:
    place = components.parse(name)
    if place.site != "head" or place.pos is not None:
        raise QueryError(f"{name!r} is no head; heads are called L1H0")
    return place
