"""Equal sizes for the members of a ladder: the width of the MLP makes up for what a factor costs.

All members read the same tokens in the same order, so equal FLOPs a token are equal compute.
"""

from dataclasses import replace
from functools import cache
from typing import Literal, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from train.errors import RecipeError, nearest
from train.model import GPT, GPTConfig


__all__ = ["Equal", "equal_size", "flops_per_token"]

Equal = Literal["parameters", "compute"]
# The width of the MLP is a multiple of this, so that products of matrices stay fast. In a small
# model of three layers of 128, it is 0.6 % of the parameters.
MULTIPLE = 4


@cache
def flops_per_token(cfg: GPTConfig) -> int:
    """Return the floating-point operations of training on one token.

    Counted are the products of matrices in a forward pass over one full window, three times: the
    backward pass takes two forward passes. Attention counts the whole square of positions.

    Examples:
        >>> from train.model import preset
        >>> ladder.flops_per_token(preset("gpt2-nano"))
        3305472
    """
    # The kernel of fused attention has no count, and computes the same products.
    explicit = replace(cfg, attention="explicit") if cfg.attention == "fused" else cfg
    with torch.device("meta"):
        model = GPT(explicit).to("meta")
        tokens = torch.zeros((1, cfg.n_ctx), dtype=torch.long)
    # With gradients, because the counter follows modules by their gradient functions.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(tokens)
    return 3 * counter.get_total_flops() // cfg.n_ctx


def equal_size(cfg: GPTConfig, like: GPTConfig, equal: Equal) -> GPTConfig:
    """Return an architecture with the width of the MLP at which it is as large as another one.

    Args:
        like: The architecture whose size counts.
        equal: `parameters`: as many parameters; `compute`: as many FLOPs a token.

    Raises:
        RecipeError: It is larger with the smallest MLP, or `equal` is another word.

    Examples:
        >>> from train.model import preset
        >>> retro, modern = preset("retro-nano"), preset("modern-nano")
        >>> ladder.equal_size(modern, retro, "parameters").d_mlp
        344
    """
    if equal not in get_args(Equal):
        raise RecipeError(f"no size is called {equal!r}{nearest(equal, get_args(Equal))}")
    target = _size(like, equal)
    if _size(cfg, equal) == target:
        return cfg
    # Both sizes are linear in the width.
    small, large = (replace(cfg, d_mlp=width) for width in (MULTIPLE, 2 * MULTIPLE))
    smallest = _size(small, equal)
    more = (target - smallest) / (_size(large, equal) - smallest)
    width = MULTIPLE * (1 + round(more))
    if width < MULTIPLE:
        raise RecipeError(
            f"equal {equal} are impossible: {smallest:,} with the smallest MLP, and the start has "
            f"{target:,}"
        )
    return replace(cfg, d_mlp=width)


def _size(cfg: GPTConfig, equal: Equal) -> int:
    return cfg.n_params if equal == "parameters" else flops_per_token(cfg)
