"""Where a token stands: sinusoids and rotations.

Sinusoids (Vaswani et al. 2017) are added to the embedding; as the *start* of a learned table they
are one of the three things without which the planted run grows no previous-token head. Rotations
(RoPE, Su et al. 2021) turn queries and keys by an angle proportional to the position, so that a
score depends on the distance only.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn


__all__ = ["Rotary", "rotate", "sinusoids"]


def sinusoids(n_ctx: int, d_model: int, *, base: float) -> Float[Tensor, "pos d_model"]:
    """concat(sin(t f), cos(t f)) with f_k = base^(-k / (d_model / 2)), amplitude 1."""
    half = d_model // 2
    # float64, so that the rounding of sin and cos to fp32 does not depend on the machine; numpy's,
    # because torch's is MKL's, in two threads: once in some hundred runs, on a crowded processor,
    # one half of the sines came out at half the digits (79 values another bit), and the run was
    # not init(seed). 6,000 more tries did not show it again.
    angle = np.outer(np.arange(n_ctx), base ** (-np.arange(half) / half))
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)).float()


class Rotary(nn.Module):
    """Cosines and sines of every position; shared by all layers, never saved."""

    cos: Tensor
    sin: Tensor

    def __init__(self, n_ctx: int, d_head: int, *, theta: float) -> None:
        super().__init__()
        # fp32 throughout: Hugging Face rounds the angle so, and at position 2,000 that rounding
        # is 1e-4. More exact angles would be further from every published checkpoint.
        exponent = torch.arange(0, d_head, 2, dtype=torch.float32) / d_head
        angle = torch.outer(torch.arange(n_ctx, dtype=torch.float32), 1.0 / theta**exponent)
        angle = torch.cat([angle, angle], dim=-1)[:, None, :]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, n_pos: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [pos 1 d_head] of the first `n_pos` positions."""
        return self.cos[:n_pos], self.sin[:n_pos]


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "pos 1 d_head"],
    sin: Float[Tensor, "pos 1 d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn the pair (i, i + d_head/2) of every head by its position's angle: Llama's pairing."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
