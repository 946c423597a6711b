"""The optimizers, AdamW and Muon, with learning rate and weight decay determined by the recipe.

Weight decay applies to matrices and embedding tables, not to biases and norms (as in GPT-2 and
nanoGPT). The optimizer's state is saved under parameter names, so a checkpoint can be read without
knowing in which order torch numbered the parameters.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) updates every matrix of a block
by its momentum after an approximate orthogonalisation: with the singular value decomposition
`U S V^T` of the momentum the update is about `U V^T`. Embeddings, positions, unembedding, norms and
biases stay with AdamW.
"""

from collections import defaultdict
from collections.abc import Callable
from math import cos, pi
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.errors import DamagedError
from train.model import GPT, Linear
from train.recipes import Recipe


__all__ = [
    "Muon",
    "adamw",
    "load_optimizer_state",
    "lr_at",
    "new_optimizer",
    "optimizer_state",
    "set_lr",
    "set_weight_decay",
    "weight_decay_at",
]

# The quintic of Jordan et al.: five steps bring every singular value near 1 (.7 to 1.2) instead of
# exactly to 1, because what counts is how fast the small ones grow.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


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


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step; Muon's matrices take `muon_lr / recipe.lr` times it.

    Examples:
        >>> state = trainer.initial_state(run.recipe, run.numerics)
        >>> trainer.set_lr(state.optimizer, 1e-3)
        >>> [group["lr"] for group in state.optimizer.param_groups]
        [0.001, 0.001]
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


def weight_decay_at(recipe: Recipe, step: int) -> float:
    """Return the weight decay of the update at `step`, counted from 0.

    It is `weight_decay` for the share `weight_decay_hold` of the steps, and then goes linearly to
    `weight_decay_end` times that at the last step.

    Examples:
        >>> from dataclasses import replace
        >>> recipe = replace(run.recipe, steps=11, weight_decay=1.0, weight_decay_end=0.4)
        >>> [round(trainer.weight_decay_at(recipe, step), 2) for step in (0, 4, 7, 10)]
        [1.0, 1.0, 0.7, 0.4]
    """
    if recipe.weight_decay_end == 1.0:
        return recipe.weight_decay
    share, hold = step / max(recipe.steps - 1, 1), recipe.weight_decay_hold
    progress = max(share - hold, 0.0) / (1 - hold)
    return recipe.weight_decay * (1 + progress * (recipe.weight_decay_end - 1))


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Set the weight decay of the next step, for the parameters that decay.

    Examples:
        >>> state = trainer.initial_state(run.recipe, run.numerics)
        >>> trainer.set_weight_decay(state.optimizer, 0.5)
        >>> [group["weight_decay"] for group in state.optimizer.param_groups]
        [0.5, 0.0]
    """
    for group in optimizer.param_groups:
        if group.get("decays"):
            group["weight_decay"] = weight_decay


def new_optimizer(model: GPT, recipe: Recipe) -> torch.optim.AdamW:
    """Return the recipe's optimizer for the model, without any state."""
    return adamw(model, recipe) if recipe.optimizer == "adamw" else Muon(model, recipe)


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return a fused AdamW with weight decay on every parameter with two or more axes."""
    groups = _decay_groups(_trained(model, recipe), recipe)
    # Fused means one kernel for all parameters. Its results differ from `foreach` in the last bits,
    # so a resumed run must use it too.
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True
    )


def _trained(model: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """Return the parameters that training changes: without an extra block of weight 0."""
    skipped = () if recipe.mtp_weight or not recipe.model.mtp else ("mtp.",)
    return [one for name, one in model.named_parameters() if not name.startswith(skipped)]


def _decay_groups(parameters: list[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay, "decays": True},
        {"params": vectors, "weight_decay": 0.0},
    ]


class Muon(torch.optim.AdamW):
    """Muon for the matrices of the blocks, AdamW for all other parameters.

    One step for a matrix W [out, in] with gradient G and momentum M:

        M' = m M + (1 - m) G
        W' = (1 - lr decay) W - lr sqrt(max(1, out / in)) orthogonalised(m M' + (1 - m) G)

    The rows of queries, keys and values in `qkv` are orthogonalised as three matrices. As one they
    would share the singular values of one update: the values, whose gradient is the largest at
    first, would leave less for queries and keys, and each of the three would move by less than the
    output projection does.

    Args:
        model: Model to train; the first group of parameters holds the matrices of its blocks.
        precision: Type in which matrices are orthogonalised; None: bf16 on a GPU, as
            torch.optim.Muon does everywhere, and that of the weights on a CPU.
    """

    def __init__(self, model: GPT, recipe: Recipe, precision: torch.dtype | None = None) -> None:
        # Gates and the vectors of sinks are no maps between spaces of the model; AdamW trains them.
        widths = {
            one.weight: block.attn.widths if one is block.attn.qkv else [len(one.weight)]
            for block in (*model.blocks, *([model.mtp.block] if recipe.mtp_weight else []))
            for name, one in block.named_modules()
            if type(one) is Linear and not name.endswith("value_gate")
        }
        matrices = {
            "params": list(widths),
            "weight_decay": recipe.weight_decay,
            "decays": True,
            "lr_ratio": recipe.muon_lr / recipe.lr,
            "momentum": recipe.muon_momentum,
            "precision": precision,
            "widths": list(widths.values()),
        }
        others = [one for one in _trained(model, recipe) if one not in widths]
        super().__init__(
            [matrices, *_decay_groups(others, recipe)],
            lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True,
        )  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies pass through here. Adam's version repairs states of old versions of torch, and
        # expects a `step` for every parameter, which matrices do not have.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters; the gradients of the matrices become None."""
        for group in self.param_groups:
            if "momentum" in group:
                self._update_matrices(group)
        # AdamW passes over parameters without a gradient.
        return super().step(closure)

    def _update_matrices(self, group: dict[str, Any]) -> None:
        # Matrices of one shape, from all layers, are orthogonalised in one batch.
        parts = defaultdict(list)
        for parameter, widths in zip(group["params"], group["widths"], strict=True):
            momentum = self.state[parameter].setdefault(
                "momentum_buffer", torch.zeros_like(parameter)
            )
            momentum.lerp_(parameter.grad, 1 - group["momentum"])
            nesterov = parameter.grad.lerp(momentum, group["momentum"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.grad = None
            for weight, update in zip(parameter.split(widths), nesterov.split(widths), strict=True):
                parts[update.shape].append((weight, update))
        for (n_out, n_in), pairs in parts.items():
            lr = group["lr"] * max(1.0, n_out / n_in) ** 0.5
            stacked = torch.stack([update for _, update in pairs])
            updates = orthogonalised(stacked, group["precision"])
            for (weight, _), update in zip(pairs, updates, strict=True):
                weight.add_(update, alpha=-lr)


def orthogonalised(
    matrices: Float[Tensor, "batch out in"], precision: torch.dtype | None = None
) -> Float[Tensor, "batch out in"]:
    """Return the matrices with all singular values near 1, by five Newton-Schulz steps.

    Args:
        precision: Type of the computation; None: bf16 on a GPU, that of the matrices on a CPU.
    """
    # torch.optim.Muon computes this in bf16, which a processor without bf16 emulates: a step took
    # 0.7 to 1.2 s instead of 0.22 s (2 layers of 128, 4,096 tokens).
    x = matrices.to(precision or (torch.bfloat16 if matrices.is_cuda else matrices.dtype))
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    linear, cubic, quintic = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear
        )
    return (x.mT if tall else x).to(matrices.dtype)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors, on the CPU, under the names with which they are saved.

    AdamW has `<parameter>.exp_avg`, `.exp_avg_sq` and `.step`; Muon's matrices have
    `<parameter>.momentum_buffer`. Before the first update there are none.
    """
    # torch gives "step" the default type of the process, which may be another one than fp32.
    return {
        f"{name}.{key}": (value.float() if key == "step" else value)
        .detach().cpu().contiguous().reshape(value.shape)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }  # fmt: skip


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]
) -> None:
    """Give the optimizer the tensors that `optimizer_state` returned.

    Raises:
        DamagedError: A parameter of the model lacks its numbers in a state that is not empty, or
            they have another shape or type.
    """
    if not state:
        return
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        keys = ("momentum_buffer",) if "momentum" in group else ("step", "exp_avg", "exp_avg_sq")
        for parameter in group["params"]:
            try:
                moments = {key: state[f"{names[parameter]}.{key}"] for key in keys}
            except KeyError as missing:
                raise DamagedError(f"the optimizer state lacks {missing} of this model") from None
            for key, value in moments.items():
                like = torch.zeros((), dtype=torch.float32) if key == "step" else parameter
                if (value.dtype, value.shape) != (like.dtype, like.shape):
                    raise DamagedError(
                        f"{names[parameter]}.{key} is {value.dtype} {list(value.shape)}, and "
                        f"{like.dtype} {list(like.shape)} is expected"
                    )
            optimizer.state[parameter] = {
                key: value.to(parameter.device).clone() for key, value in moments.items()
            }
