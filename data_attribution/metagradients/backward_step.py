"""Reverse-mode derivative of one training step.

A step takes weights w and moments m, v to w', m', v' (`train.trainer.training_steps`,
`train.trainer.adamw`):

    r = gradient of the loss          g = c r,  c = min(1, clip / (|r| + 1e-6))
    m' = beta1 m + (1 - beta1) g      v' = beta2 v + (1 - beta2) g g
    w' = (1 - lr decay) w - lr / b1 m' / (sqrt(v' / b2) + eps),   b = 1 - beta^(step + 1)

Let F be the final answer to a query. Given the derivatives of F with respect to w', m' and v',
`through_update` returns those with respect to w, m, v and r by the chain rule. r is itself a
function of w and of the weight that every target has in the loss; `through_loss` propagates the
derivative with respect to r to both. It differentiates a gradient, so that it multiplies with the
curvature of the loss (Pearlmutter 1994). Summed over steps this is the metagradient of MAGIC (Ilyas
& Engstrom 2025, arXiv 2504.16430).

Two points are not smooth. Where |r| equals the clipping bound, c has a kink: the side that the run
was on is taken. Where a weight never had a gradient, v' = 0 and its root has no slope: m' is 0 too,
the product of both vanishes to first order, and 0 is taken. A weight whose few gradients come from
one document is smooth only nearby: without the document it does not move, and no slope shows that.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from data_attribution.metagradients import double_backward
from data_attribution.metagradients.optimizer_vectors import Vectors, flat, split
from train.data import Batch
from train.model import HookedModule
from train.recipes import Recipe
from train.short_repr import short_repr
from train.trainer import lr_at, weight_decay_at


__all__ = ["Update", "backwards", "through_loss", "through_update"]

CLIP_GUARD = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


@dataclass(frozen=True, eq=False)
class Update:
    """The record of a training step that its reverse needs.

    Attributes:
        step: Index of the step, from 0.
        before, after: Optimizer states around the step; only their moments are used.
        norm: Norm of the gradient before clipping.
        decayed: Which weights decay.
    """

    step: int
    before: Vectors
    after: Vectors
    norm: float
    decayed: Bool[Tensor, " parameter"]

    __repr__ = short_repr


def backwards(
    model: HookedModule,
    batch: Batch,
    adjoint: Vectors,
    update: Update,
    recipe: Recipe,
    *,
    windows: int | None = None,
) -> tuple[Vectors, Float[Tensor, "question batch pos"]]:
    """Return the derivatives by the state before a step, and by the weight of each target in it.

    Args:
        model: Model with the weights before the step.
        adjoint: Derivatives of each query's final answer with respect to the state after the step.
        windows: Largest number of windows that pass through the model at a time.
    """
    earlier, pull = through_update(adjoint, update, recipe)
    on_weights, on_targets = through_loss(model, batch, pull, windows=windows)
    # The weights act on the answer in two ways: directly through w' (decay), and through the
    # gradient.
    return Vectors(earlier.weights + on_weights, earlier.first, earlier.second), on_targets


def through_update(
    adjoint: Vectors, update: Update, recipe: Recipe
) -> tuple[Vectors, Float[Tensor, "question parameter"]]:
    """Propagate derivatives from w', m', v' to w, m, v at a fixed gradient, and to the gradient r.

    r is the gradient before clipping.

    Args:
        adjoint: Derivatives of each query's final answer with respect to the state after the step.
    """
    lr, n_updates = lr_at(recipe, update.step), update.step + 1
    beta1, beta2 = recipe.beta1, recipe.beta2
    rate = lr / (1 - beta1**n_updates)
    root = (update.after.second / (1 - beta2**n_updates)).sqrt()
    below = root + recipe.eps
    # dF/dm' in all: directly, and through w' = ... - rate m' / below.
    on_first = adjoint.first - rate * adjoint.weights / below
    # dw'/dv' = rate m' / (below^2 2 root b2), because d(1/below)/dv' = -1 / (below^2 2 root b2); 0
    # where a weight never had a gradient.
    slope = rate * update.after.first / (2 * (1 - beta2**n_updates) * below.square() * root)
    slope = torch.where(root > 0, slope, 0.0)
    on_second = adjoint.second + adjoint.weights * slope
    # g is recovered from the moments: m' = beta1 m + (1 - beta1) g.
    clipped = (update.after.first - beta1 * update.before.first) / (1 - beta1)
    # dF/dg, through m' and through v' = beta2 v + (1 - beta2) g g.
    pull = (1 - beta1) * on_first + 2 * (1 - beta2) * on_second * clipped
    kept = 1 - lr * weight_decay_at(recipe, update.step) * update.decayed
    earlier = Vectors(adjoint.weights * kept, beta1 * on_first, beta2 * on_second)
    return earlier, _before_clipping(pull, clipped, update.norm, recipe.grad_clip)


def _before_clipping(
    pull: Float[Tensor, "question parameter"],
    clipped: Float[Tensor, " parameter"],
    norm: float,
    clip: float,
) -> Float[Tensor, "question parameter"]:
    # g = c r. Not clipped: dF/dr = dF/dg. Clipped, c = clip / (|r| + guard) depends on r:
    # dF/dr = c dF/dg - (dF/dg . g) g / (clip |r|).
    factor = clip / (norm + CLIP_GUARD)
    if factor >= 1:
        return pull
    along = (pull @ clipped)[:, None] * clipped
    return factor * pull - along / (clip * norm)


def through_loss(
    model: HookedModule,
    batch: Batch,
    pull: Float[Tensor, "question parameter"],
    *,
    windows: int | None = None,
) -> tuple[Float[Tensor, "question parameter"], Float[Tensor, "question batch pos"]]:
    """Propagate derivatives from a step's gradient to its weights and to the targets' weights.

    Args:
        model: Model with the weights before the step.
        windows: Largest number of windows that pass through the model at a time.

    Returns:
        The curvature of the loss times `pull`, and the derivative of each query's final answer with
        respect to the weight of each target in the loss, 0 where a target carries no loss.
    """
    parameters = list(model.parameters())
    on_weights, on_targets = torch.zeros_like(pull), []
    for part in batch.parts(windows):
        # loss(w, share) = sum over targets of share * loss of the target / divisor, at share = 1.
        # With r = d loss / dw, the derivatives of the number r . pull are
        #   with respect to w:         H pull, H the Hessian of the loss
        #   with respect to share[t]:  (gradient of the loss of target t) . pull / divisor
        share = pull.new_ones(part.targets.shape).requires_grad_()
        losses = _losses(model, part.inputs.to(pull.device), part.targets.to(pull.device))
        loss = (losses * share).sum() / batch.divisor
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        rows = []
        for question, direction in enumerate(pull):
            *curved, weighed = torch.autograd.grad(
                gradient, [*parameters, share], split(direction, model),
                retain_graph=question < len(pull) - 1, materialize_grads=True,
            )  # fmt: skip
            on_weights[question] += flat(curved)
            rows.append(weighed)
        on_targets.append(torch.stack(rows))
    return on_weights, torch.cat(on_targets, dim=1)


def _losses(
    model: HookedModule, inputs: Int64[Tensor, "batch pos"], targets: Int64[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    """Return the loss of every target, in nats; 0 where there is none."""
    # torch's fused attention cannot be differentiated twice. A hook on the attention pattern makes
    # the model compute attention explicitly.
    with model.hooks([(_is_pattern, _look)]):
        logits = model(inputs)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return double_backward.target_losses(wide, targets)


def _is_pattern(name: str) -> bool:
    return name.endswith("attn.hook_pattern")


def _look(value: Tensor, point: object) -> None:
    """Do nothing: the presence of the hook is what matters."""
