"""Behaviours of models that were never trained: what they say anyway is taken for the answer."""

import torch
from torch import Tensor

from interp.behaviours import Behaviour
from train.model import GPT


def said_by(
    model: GPT,
    clean: Tensor,
    corrupt: Tensor,
    *,
    name: str = "random",
    subject: tuple[int, int] | None = None,
) -> Behaviour:
    """A behaviour that the model does: its first choice after a clean prompt against its last."""
    with torch.no_grad():
        last = model(clean)[:, -1]
    return Behaviour(name, clean, corrupt, last.argmax(dim=1), last.argmin(dim=1), subject=subject)


def moved_by(model: GPT, clean: Tensor, corrupt: Tensor) -> Behaviour:
    """A behaviour that corruption breaks: it lowers no token as much as the answer.

    Of the tokens that lose to the answer on the clean prompt, the foil is the one that corruption
    favours most.
    """
    with torch.no_grad():
        preferred = model(clean)[:, -1]
        moved = preferred - model(corrupt)[:, -1]
    answer = moved.argmax(dim=1)
    loses = preferred < preferred.gather(1, answer[:, None])
    foil = moved.masked_fill(~loses, float("inf")).argmin(dim=1)
    return Behaviour("random", clean, corrupt, answer, foil)
