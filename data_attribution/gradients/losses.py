"""Loss of a document's targets, whose gradient with respect to the logits is computed in one pass.

The gradient of a cross-entropy has a closed form, softmax minus one at the target, so it is
computed at once and kept in place of the logits; autograd would keep their log-softmax as well.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from train.data import IGNORED


__all__ = ["drawn", "summed"]


def summed(
    logits: Float[Tensor, "row pos vocab"],
    targets: Int[Tensor, "row pos"],
    log_odds: float | None = None,
) -> Float[Tensor, ""]:
    """Return the summed loss of all targets in nats, differentiable once.

    Targets that are `IGNORED` add nothing.

    Args:
        log_odds: Follow minus the log-odds of every target instead of its loss, as the features of
            TRAK do (Park et al. 2023; TRAK then weighs documents by 1 - p, and we do not). The loss
            of a learned target has almost no gradient left; its log-odds still have one. The
            gradient of each target's loss is divided by max(1 - p, this value); the returned value
            is then meaningless.
    """
    found: Tensor = _Summed.apply(logits, targets, log_odds)  # type: ignore[assignment]
    return found


@torch.no_grad()
def drawn(
    logits: Float[Tensor, "row pos vocab"],
    targets: Int[Tensor, "row pos"],
    chances: Float[Tensor, "row pos"],
) -> Int[Tensor, "row pos"]:
    """Return a token drawn from the prediction at every position with a target, else `IGNORED`.

    Args:
        chances: Uniform numbers between 0 and 1; each selects the token at that quantile of the
            predicted distribution.
    """
    below = logits.softmax(dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(below, (chances * below[..., -1])[..., None], right=True)[..., 0]
    return torch.where(targets == IGNORED, IGNORED, found.clamp(max=logits.shape[-1] - 1))


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, targets: Tensor, log_odds: float | None
    ) -> Tensor:
        counted = targets != IGNORED
        column = targets.clamp(min=0)[..., None]
        # One buffer, changed in place: log-softmax, then softmax p, then p - (one at the target).
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
    def backward(ctx: BackwardCFunction, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul_(gradients[0]), None, None
