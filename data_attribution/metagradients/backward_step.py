"""One training step backwards.

A step takes weights w and moments m, v to w', m', v' (train.trainer.training_steps,
train.trainer.adamw):

    r = gradient of the loss          g = c r,  c = min(1, clip / (|r| + 1e-6))
    m' = beta1 m + (1 - beta1) g      v' = beta2 v + (1 - beta2) g g
    w' = (1 - lr decay) w - lr / b1 m' / (sqrt(v' / b2) + eps),   b = 1 - beta^(step + 1)

Given how much a number hangs on w', m' and v', the chain rule says how much it hangs on w, m, v and
on r: `through_update`. What hangs on r hangs, by the curvature of the loss, on w, and on the weight
that every target has in the loss: `through_loss`, which differentiates a gradient (Pearlmutter
1994). Summed over steps that is the metagradient of MAGIC (Ilyas & Engstrom 2025, arXiv
2504.16430).

Two places are not smooth. Where |r| passes the clipping bound, c has a kink: the side that the run
was on is taken. Where a weight never had a gradient, v' = 0 and its root has no slope: m' is 0 too,
the product of both vanishes to first order, and 0 is taken. A weight whose few gradients come from
one document is smooth only nearby: without the document it stays, and no slope says so.
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
from train.trainer import lr_at


__all__ = ["Update", "backwards", "through_loss", "through_update"]

CLIP_GUARD = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


@dataclass(frozen=True, eq=False)
class Update:
    """What a step did, as its way back needs it.

    Attributes:
        before, after: The moments around the step; weights are not looked at.
        norm: Of the gradient before it was clipped.
        decayed: Weights that decay.
    """

    step: int
    before: Vectors
    after: Vectors
    norm: float
    decayed: Bool[Tensor, " parameter"]


def backwards(
    model: HookedModule,
    batch: Batch,
    adjoint: Vectors,
    update: Update,
    recipe: Recipe,
    *,
    windows: int | None = None,
) -> tuple[Vectors, Float[Tensor, "question batch pos"]]:
    """How much each question hangs on the state before a step, and on each target's weight in it.

    Args:
        model: With the weights before the step.
        adjoint: How much it hangs on the state behind the step.
        windows: At most so many pass through the model at a time.
    """
    earlier, pull = through_update(adjoint, update, recipe)
    on_weights, on_targets = through_loss(model, batch, pull, windows=windows)
    return Vectors(earlier.weights + on_weights, earlier.first, earlier.second), on_targets


def through_update(
    adjoint: Vectors, update: Update, recipe: Recipe
) -> tuple[Vectors, Float[Tensor, "question parameter"]]:
    """From w', m', v' to w, m, v at a fixed gradient, and to the gradient before clipping.

    Args:
        adjoint: How much each question hangs on the state behind the step.
    """
    lr, n_updates = lr_at(recipe, update.step), update.step + 1
    beta1, beta2 = recipe.beta1, recipe.beta2
    rate = lr / (1 - beta1**n_updates)
    root = (update.after.second / (1 - beta2**n_updates)).sqrt()
    below = root + recipe.eps
    on_first = adjoint.first - rate * adjoint.weights / below
    # d(1/below)/dv' = -1 / (below^2 2 root b2), and 0 where nothing ever pulled.
    slope = rate * update.after.first / (2 * (1 - beta2**n_updates) * below.square() * root)
    slope = torch.where(root > 0, slope, 0.0)
    on_second = adjoint.second + adjoint.weights * slope
    clipped = (update.after.first - beta1 * update.before.first) / (1 - beta1)
    pull = (1 - beta1) * on_first + 2 * (1 - beta2) * on_second * clipped
    kept = 1 - lr * recipe.weight_decay * update.decayed
    earlier = Vectors(adjoint.weights * kept, beta1 * on_first, beta2 * on_second)
    return earlier, _before_clipping(pull, clipped, update.norm, recipe.grad_clip)


def _before_clipping(
    pull: Float[Tensor, "question parameter"],
    clipped: Float[Tensor, " parameter"],
    norm: float,
    clip: float,
) -> Float[Tensor, "question parameter"]:
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
    """From the gradient of a step to its weights, and to the weight of each target in its loss.

    Args:
        model: With the weights before the step.
        windows: At most so many pass through the model at a time.

    Returns:
        The curvature of the loss times `pull`; and how much each question hangs on the weight of
        each target, 0 where a target carries no loss.
    """
    parameters = list(model.parameters())
    on_weights, on_targets = torch.zeros_like(pull), []
    for inputs, targets in batch.parts(windows):
        share = pull.new_ones(targets.shape).requires_grad_()
        losses = _losses(model, inputs.to(pull.device), targets.to(pull.device))
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
    """The loss of every target, in nats; 0 where there is none."""
    # torch's fused attention cannot be differentiated twice; looked at, it is written out.
    with model.hooks([(_is_pattern, _look)]):
        logits = model(inputs)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return double_backward.target_losses(wide, targets)


def _is_pattern(name: str) -> bool:
    return name.endswith("attn.hook_pattern")


def _look(value: Tensor, point: object) -> None:
    """Keep the value as it is."""
