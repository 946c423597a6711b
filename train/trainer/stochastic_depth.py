"""Stochastic depth: training steps that leave out whole layers (Huang et al. 2016).

Of L layers, layer l is left out of a step with probability p_l = p l / (L - 1), where p is the
recipe's `stochastic_depth`. What it adds to the residual stream is multiplied by 0 then, and by
1 / (1 - p_l) at other steps, so that its mean over steps is what the whole model adds
(https://arxiv.org/abs/1603.09382). Passes of a loop count as layers.

A draw depends on the recipe's order seed, the step and the layer alone. It is the same for all
windows of a step, so micro-batches, resumption, replay and any number of processes leave out the
same layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch

from train.model import GPT
from train.recipes import Recipe


__all__ = ["layer_scales", "layers_left_out"]


def layer_scales(recipe: Recipe, step: int) -> list[float]:
    """Return the factor of what each layer adds at a step: 0 if the layer is left out.

    Examples:
        >>> from dataclasses import replace
        >>> recipe = replace(run.recipe, stochastic_depth=0.5)
        >>> [trainer.layer_scales(recipe, step) for step in range(4)]
        [[1.0, 2.0], [1.0, 2.0], [1.0, 0.0], [1.0, 2.0]]
    """
    n_layers, scales = recipe.model.n_layers, []
    for layer in range(n_layers):
        probability = recipe.stochastic_depth * layer / max(n_layers - 1, 1)
        key = f"stochastic depth/{recipe.order_seed}/{step}/{layer}"
        drawn = int.from_bytes(sha256(key.encode()).digest()[:8], "little") / 2**64
        scales.append(0.0 if drawn < probability else 1 / (1 - probability))
    return scales


@contextmanager
def layers_left_out(model: GPT, recipe: Recipe, step: int) -> Iterator[None]:
    """Scale what the layers of the model add as the step asks; afterwards all of them are whole."""
    if not recipe.stochastic_depth:
        yield
        return
    try:
        for block, scale in zip(model.blocks, layer_scales(recipe, step), strict=True):
            block.scale = torch.tensor(scale, device=model.device)
        yield
    finally:
        for block in model.blocks:
            block.scale = None
