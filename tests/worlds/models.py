"""Models whose weights are drawn, or planted where the answer of a test depends on them."""

import torch

from train.model import GPT, GPTConfig, init_gpt


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
