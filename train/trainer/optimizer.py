"""AdamW and its learning rate, as pure functions of the recipe.

Weight decay falls on matrices and embedding tables, not on biases and norms (GPT-2, nanoGPT). The
optimizer's state is saved under parameter names, so a checkpoint can be read without knowing in
which order torch numbered the parameters.
"""

from math import cos, pi

import torch
from torch import Tensor, nn

from train.errors import DamagedError
from train.recipes import Recipe


__all__ = ["adamw", "lr_at", "read_state", "write_state"]


def lr_at(recipe: Recipe, step: int) -> float:
    """Learning rate of the update at `step`, counted from 0.

    `cosine` is nanoGPT's: linear warm-up, then a cosine to `min_lr` over the remaining steps.
    `cosine-throughout` multiplies the warm-up by a cosine that began at step 0 (planted recipe).
    """
    warmup = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
    if recipe.lr_schedule == "cosine-throughout":
        share = step / recipe.steps
        warmup = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
        floor = recipe.min_lr / recipe.lr
        return recipe.lr * warmup * (floor + (1 - floor) * 0.5 * (1 + cos(pi * share)))
    if step < recipe.warmup_steps:
        return recipe.lr * warmup
    share = (step - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + cos(pi * min(share, 1.0)))


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Fused AdamW with decay on every parameter of two or more axes."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # fused: one kernel for all parameters; its bits differ from foreach, so it is part of the
    # numerics that a resumed run must share.
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True
    )


def write_state(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """First and second moments and update counts under `name.exp_avg`, `name.exp_avg_sq`, ..."""
    return {
        f"{name}.{key}": value.detach().cpu().contiguous().reshape(value.shape)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def read_state(model: nn.Module, optimizer: torch.optim.AdamW, state: dict[str, Tensor]) -> None:
    """Put saved moments back; the inverse of `write_state` to the last bit.

    Raises:
        DamagedError: A parameter of the model has no moments in a state that is not empty.
    """
    if not state:
        return
    for name, parameter in model.named_parameters():
        try:
            moments = {key: state[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        except KeyError as missing:
            raise DamagedError(f"the optimizer state lacks {missing} of this model") from None
        optimizer.state[parameter] = {
            key: value.to(parameter.device).clone() for key, value in moments.items()
        }
