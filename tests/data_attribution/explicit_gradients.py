"""Gradients of every document and every prompt by autograd, one backward pass each.

The oracle of `data_attribution.gradients`: slow, and nothing but `backward`. A weight comes as
[case out in], with one more column for its bias, if it has one; a table as [case row d_model]. The
embedding and the unembedding of a tied table are kept apart: they are two uses of one weight.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_attribution import queries
from data_attribution.queries import Query
from train.model import GPT


Gradients = dict[str, Tensor]


def of_documents(model: GPT, documents: Sequence[Sequence[int]], eot: int) -> Gradients:
    """Of each document's summed loss in nats; longer than the context: windows, added up."""

    def loss(tokens: Sequence[int]) -> Callable[[], Tensor]:
        return lambda: sum(
            (
                functional.cross_entropy(model(inputs[None])[0], targets, reduction="sum")
                for inputs, targets in windows(tokens, eot, model.cfg.n_ctx)
            ),
            start=torch.zeros(()),
        )

    return _stacked(model, [loss(tokens) for tokens in documents])


def of_question(model: GPT, question: Query) -> Gradients:
    """Of each prompt's score."""

    def score(prompt: int) -> Callable[[], Tensor]:
        return lambda: queries.query_scores(model, question, torch.tensor([prompt]))[0]

    return _stacked(model, [score(prompt) for prompt in range(len(question.tokens))])


def windows(tokens: Sequence[int], eot: int, n_ctx: int) -> list[tuple[Tensor, Tensor]]:
    """A document as it is presented: [eot] + tokens, targets tokens + [eot], at most n_ctx each."""
    inputs = torch.tensor([eot, *tokens]).split(n_ctx)
    targets = torch.tensor([*tokens, eot]).split(n_ctx)
    return list(zip(inputs, targets, strict=True))


def projected(gradients: Tensor, out: Tensor, inside: Tensor) -> Tensor:
    """Both sides of [case out in] multiplied: P_out [p out], P_in [p in] to [case p * p]."""
    return torch.einsum("po,coi,qi->cpq", out, gradients, inside).flatten(1)


def _stacked(model: GPT, values: Sequence[Callable[[], Tensor]]) -> Gradients:
    table = model.embed.weight.detach().clone().requires_grad_()
    every: list[Gradients] = []

    def embedded(value: Tensor, point: object) -> Tensor:
        return functional.embedding(read[0], table)

    def keep(module: nn.Module, inputs: tuple[Tensor]) -> None:
        read[0] = inputs[0]

    read: list[Tensor] = [torch.empty(0)]
    handle = model.register_forward_pre_hook(keep)
    model.hook_embed.fwd.append(embedded)
    try:
        for value in values:
            model.zero_grad(set_to_none=True)
            table.grad = None
            value().backward()
            every.append(_collected(model, table))
    finally:
        handle.remove()
        model.hook_embed.fwd.remove(embedded)
        model.zero_grad(set_to_none=True)
    return {name: torch.stack([one[name] for one in every]) for name in every[0]}


def _collected(model: GPT, table: Tensor) -> Gradients:
    unembed = model.embed if model.cfg.tie else model.unembed
    found = {"embed": _of(table), "unembed": _of(unembed.weight)}
    if model.cfg.position == "learned":
        found["pos_embed"] = _of(model.pos_embed.weight)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "unembed":
            found[name] = _of(module.weight)
            if module.bias is not None:
                found[name] = torch.cat([found[name], _of(module.bias)[:, None]], dim=1)
    return found


def _of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
