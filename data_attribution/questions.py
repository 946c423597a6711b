"""What is asked of a model, so that it can be measured again and differentiated.

A question is a number a prompt, from the logits and from values at hook points: a behaviour's own
metric, the attention of one head, what a probe reads. Attribution follows its gradient to the
documents, and a counterfactual measures it again on the retrained model; both ask in the same
words. A higher number is more of the behaviour.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.behaviours import Behaviour
from interp.components import HookedModel, device_of
from interp.metrics import Metric, logit_difference


__all__ = ["Question", "measure", "of_behaviour", "scores"]

ROWS = 64

Score = Callable[
    [Float[Tensor, "row pos vocab"], Mapping[str, Tensor], Int[Tensor, " row"]],
    Float[Tensor, " row"],
]


@dataclass(frozen=True, eq=False)
class Question:
    """A number a prompt.

    Attributes:
        name: For tables and files.
        unit: Of one number.
        tokens: The prompts.
        score: Given logits, values at the hook points of `reads` by name, and the prompt of every
            row, one number a row. Rows come in any number and order.
        reads: Hook points whose values it needs.
    """

    name: str
    unit: str
    tokens: Int[Tensor, "prompt pos"]
    score: Score
    reads: tuple[str, ...] = ()


def of_behaviour(behaviour: Behaviour, metric: Metric | None = None) -> Question:
    """A behaviour on its clean prompts; default metric: the logit difference."""
    metric = metric or logit_difference(behaviour)

    def score(logits: Tensor, values: Mapping[str, Tensor], prompt: Tensor) -> Tensor:
        read = logits[:, metric.reads(logits.shape[1])]
        if metric.columns is not None:
            read = read[..., metric.columns.to(logits.device)]
        return metric.score(read, prompt)

    return Question(behaviour.name, metric.unit, behaviour.clean, score)


def scores(
    model: HookedModel, question: Question, prompt: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """The numbers of some prompts, differentiable where gradients are enabled."""
    values: dict[str, Tensor] = {}

    def keeping(name: str) -> tuple[str, Callable[..., None]]:
        return name, lambda value, point: values.__setitem__(name, value)

    tokens = question.tokens[prompt].to(device_of(model))
    logits = model.run_with_hooks(tokens, fwd_hooks=[keeping(name) for name in question.reads])
    return question.score(logits, values, prompt.to(logits.device))


@torch.no_grad()
def measure(model: HookedModel, question: Question) -> Float[np.ndarray, " prompt"]:
    """The numbers of all prompts."""
    rows = torch.arange(len(question.tokens)).split(ROWS)
    return torch.cat([scores(model, question, row) for row in rows]).double().cpu().numpy()
