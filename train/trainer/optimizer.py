"""AdamW and its learning rate, determined by the recipe.

Weight decay applies to matrices and embedding tables, not to biases and norms (as in GPT-2 and
nanoGPT). The optimizer's state is saved under parameter names, so a checkpoint can be read without
knowing in which order torch numbered the parameters.
"""

from math import cos, pi

import torch
from torch import Tensor, nn

from train.errors import DamagedError
from train.recipes import Recipe


__all__ = ["adamw", "lr_at", "read_state", "write_state"]


def lr_at(recipe: Recipe, step: int) -> float:
    """Return the learning rate of the update at `step`, counted from 0.

    `cosine` is nanoGPT's schedule: linear warm-up, then a cosine to `min_lr` over the remaining
    steps. `cosine-throughout` (planted recipe) multiplies the warm-up by a cosine from step 0.

    Examples:
        >>> [round(trainer.lr_at(run.recipe, step), 5) for step in (0, 100, 2099)]
        [2e-05, 0.00174, 0.00035]
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
    """Return a fused AdamW with weight decay on every parameter with two or more axes."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # Fused means one kernel for all parameters. Its results differ from `foreach` in the last bits,
    # so a resumed run must use it too.
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True
    )


def write_state(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return the optimizer's state by name: `<parameter>.exp_avg`, `.exp_avg_sq` and `.step`."""
    return {
        f"{name}.{key}": value.detach().cpu().contiguous().reshape(value.shape)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def read_state(model: nn.Module, optimizer: torch.optim.AdamW, state: dict[str, Tensor]) -> None:
    """Restore a saved optimizer state; the exact inverse of `write_state`.

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
