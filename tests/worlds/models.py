"""Models whose weights are drawn, or planted where the answer of a test depends on them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from train.model import GPT, GPTConfig, init_gpt


class Hooked:
    """A model written by hand in `run_with_hooks`, which passes its values through `points`."""

    def run_with_hooks(self, tokens: torch.Tensor, *, fwd_hooks: Sequence[Any] = ()) -> Any:
        raise NotImplementedError

    def __call__(self, tokens):
        return self.run_with_hooks(tokens)

    def run_with_cache(self, tokens, *, names_filter):
        cache: dict[str, torch.Tensor] = {}

        def keep(name):
            return name, lambda value, point: cache.setdefault(name, value.clone())

        return self.run_with_hooks(tokens, fwd_hooks=[keep(name) for name in names_filter]), cache


def points(fwd_hooks: Sequence[Any]) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Return the function that gives a value, by the name of its hook point, to its hook."""
    hooks = dict(fwd_hooks)

    def point(name: str, value: torch.Tensor) -> torch.Tensor:
        return hooks.get(name, lambda value, point: value)(value, None)

    return point


def shaken(cfg: GPTConfig, scale: float = 0.2) -> GPT:
    """A model whose biases, gains and gates are not 0 and 1, so that none can be lost unseen."""
    model, draw = init_gpt(cfg, seed=0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def silenced(model: GPT) -> GPT:
    """The model, whose layers now write nothing into the residual stream."""
    with torch.no_grad():
        for block in model.blocks:
            block.attn.out.weight.zero_()
            block.mlp.down.weight.zero_()
    return model
