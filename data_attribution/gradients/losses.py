"""What a document's targets would change in the logits, in one pass over them.

The gradient of a cross-entropy is known in closed form, softmax minus one at the target, so it is
computed at once and kept in place of the logits; autograd would keep their log-softmax too.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.data import IGNORED


__all__ = ["drawn", "summed"]


def summed(
    logits: Float[Tensor, "row pos vocab"],
    targets: Int[Tensor, "row pos"],
    log_odds: float | None = None,
) -> Float[Tensor, ""]:
    """The loss of all targets in nats, differentiable once; `IGNORED` ones carry none.

    Args:
        log_odds: Follow minus the log-odds of every target in place of its loss, as the features of
            TRAK do (Park et al. 2023; TRAK then weighs documents by 1 - p, and we do not): what has
            been learned has no loss left to pull with, and pulls as before. The gradient of each
            target's loss is divided by 1 - p, or by this where that is less; the value returned is
            of no use then.
    """
    found: Tensor = _Summed.apply(logits, targets, log_odds)  # type: ignore[assignment]
    return found


@torch.no_grad()
def drawn(
    logits: Float[Tensor, "row pos vocab"],
    targets: Int[Tensor, "row pos"],
    chances: Float[Tensor, "row pos"],
) -> Int[Tensor, "row pos"]:
    """A token from what is predicted at every position that has a target; elsewhere `IGNORED`.

    Args:
        chances: Between 0 and 1: which token, by how much probability lies on those before it.
    """
    below = logits.softmax(dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(below, (chances * below[..., -1])[..., None], right=True)[..., 0]
    return torch.where(targets == IGNORED, IGNORED, found.clamp(max=logits.shape[-1] - 1))


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, log_odds: float | None) -> Tensor:
        counted = targets != IGNORED
        column = targets.clamp(min=0)[..., None]
        slope = logits.log_softmax(dim=-1)
        losses = -slope.gather(-1, column)[..., 0]
        slope.exp_()
        slope.scatter_add_(-1, column, slope.new_full((1,), -1.0).expand(column.shape))
        weight = counted.to(slope.dtype)
        if log_odds is not None:
            weight = weight / (-torch.expm1(-losses)).clamp(min=log_odds)
        if log_odds is not None or not bool(counted.all()):
            slope *= weight[..., None]
        ctx.save_for_backward(slope)
        return (losses * weight).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul_(gradients[0]), None, None
