"""Evaluation of a model's loss during training, without any effect on the training.

No random state is read, so evaluating more or less often does not change a run. (nanoGPT's
`estimate_loss` draws from the generator that also draws the training data.)
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train import numerics
from train.data import IGNORED, Batch, Order, RecordedOrder, TokenStore, read_batch
from train.model import GPT, HookPoint
from train.numerics import Numerics
from train.recipes import Recipe
from train.trainer import loss


__all__ = ["distance", "first_bad_tensor", "fixed_loss", "held_out_loss", "is_highest"]

FIXED_WINDOWS = 32


def distance(one: float, other: float) -> float:
    """Return the absolute difference of two losses; infinite if either is not finite."""
    # NaN must not be returned: max(0.0, nan) is 0.0, so NaN weights would seem to agree.
    return abs(one - other) if math.isfinite(one) and math.isfinite(other) else math.inf


def is_highest(
    logits: Float[Tensor, "row vocab"],
    token: Int[Tensor, " row"],
    candidates: Sequence[int] | None = None,
) -> Bool[Tensor, " row"]:
    """Return whether a token has the highest logit among the candidates; None: the vocabulary.

    Args:
        token: One token for each row; it is one of the candidates.

    Examples:
        >>> logits = torch.tensor([[3.0, 1.0, 2.0]])
        >>> trainer.is_highest(logits, torch.tensor([2])).tolist()
        [False]
        >>> trainer.is_highest(logits, torch.tensor([2]), candidates=[1, 2]).tolist()
        [True]
    """
    if candidates is None:
        return logits.argmax(dim=1) == token
    among = torch.tensor(candidates, device=logits.device)
    return among[logits[:, among].argmax(dim=1)] == token


@torch.no_grad()
def fixed_loss(model: GPT, store: TokenStore, order: Order, how: Numerics) -> float:
    """Return the loss in nats per target on the first 32 windows of step 0.

    The batch is the same for every checkpoint.

    Examples:
        >>> first = trainer.fixed_loss(run.load(0), store, run.order, run.numerics)
        >>> last = trainer.fixed_loss(run.load(), store, run.order, run.numerics)
        >>> round(first, 1), round(last, 1)
        (7.0, 1.6)
    """
    batch = read_batch(store, order, 0)
    inputs, targets = _rows(batch, store)
    inputs, targets = inputs[:FIXED_WINDOWS], targets[:FIXED_WINDOWS]
    counted = int((targets != IGNORED).sum())
    return _loss(model, inputs, targets, max(counted, 1), how)


@torch.no_grad()
def held_out_loss(model: GPT, store: TokenStore, recipe: Recipe, how: Numerics) -> float | None:
    """Return the loss in nats per target on the first `eval_windows` held-out windows.

    The result is None if the store holds out less than one window.

    Examples:
        >>> loss = trainer.held_out_loss(model, store, run.recipe, run.numerics)
        >>> loss is None  # the released run holds nothing out
        True
    """
    context = store.window(recipe.model.n_ctx)
    n_windows = min((store.n_tokens - store.train_tokens) // context, recipe.eval_windows)
    if n_windows < 1:
        return None
    starts = store.train_tokens - 1 + np.arange(n_windows) * context
    total = counted = 0
    size = recipe.micro_batch_size or recipe.batch_size
    for chunk in np.split(starts, range(size, n_windows, size)):
        batch = read_batch(store, RecordedOrder(chunk[None], context), 0)
        total += _loss(model, *_rows(batch, store), 1, how)
        counted += batch.divisor
    return total / counted


@torch.no_grad()
def first_bad_tensor(model: GPT, batch: Batch, how: Numerics) -> str:
    """Describe the first tensor that is not finite.

    Weights are checked first, then activations in forward order, then gradients.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name}"
    bad: list[str] = []

    def look(tensor: torch.Tensor, point: HookPoint) -> None:
        # Attention scores are finite too: the future is masked with the lowest finite number.
        if not tensor.isfinite().all():
            bad.append(point.name)

    try:
        for name in model.hook_dict:
            model.add_hook(name, look)
        with numerics.applied(how), how.autocast():
            model(batch.inputs[:, : model.cfg.n_ctx].to(how.device))
    finally:
        model.reset_hooks()
    if bad:
        return f"the activation {bad[0]}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss itself (every weight and activation is finite)"


def _rows(batch: Batch, store: TokenStore) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets as the model reads them: a preference is two rows."""
    width = store.example_length or batch.inputs.shape[1]
    return batch.inputs.reshape(-1, width), batch.targets.reshape(-1, width)


def _loss(
    model: GPT, inputs: torch.Tensor, targets: torch.Tensor, divisor: int, how: Numerics
) -> float:
    training = model.training
    model.eval()
    try:
        with numerics.applied(how), how.autocast():
            logits, targets = model(inputs.to(how.device)), targets.to(how.device)
            return loss.next_token_loss(logits, targets, divisor).item()
    finally:
        model.train(training)
