"""Positional encodings: sinusoids and rotations.

Sinusoids (Vaswani et al. 2017) are added to the embedding. As *initial values* of a learned table
they are one of the three conditions without which no previous-token head forms in the planted run.
Rotations (RoPE, Su et al. 2021) turn queries and keys by an angle proportional to the position, so
that a score depends on the positions only through their distance. GPT-NeoX rotates the first
channels of every head only. Llama 3 makes the slow rotations of a trained model slower, so that it
reads a longer context (`Llama3Scaling`).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.model.architecture import GPTConfig


__all__ = ["Llama3Scaling", "Rotary", "rotary_of", "rotate", "sinusoids"]

FIRST_POSITIONS = 4096


def sinusoids(n_ctx: int, d_model: int, *, base: float) -> Float[Tensor, "pos d_model"]:
    """Return concat(sin(t f), cos(t f)) for t = pos and f_k = base^(-k / (d_model / 2))."""
    half = d_model // 2
    # Computed in float64, so that the fp32 result does not depend on the machine. numpy is used
    # because torch calls MKL in two threads: in one of some hundred runs, on a busy processor, half
    # of the sines had only half the digits (79 values differed by a bit), and the initial weights
    # were not those of the seed. 6,000 further tries did not reproduce it.
    angle = np.outer(np.arange(n_ctx), base ** (-np.arange(half) / half))
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)).float()


@dataclass(frozen=True)
class Llama3Scaling:
    """Change of the frequencies of a rotation as in Llama 3.1 (`rope_type` llama3).

    A frequency f turns n = n_ctx f / 2 pi times in the context of training. It becomes

        f / factor                                       n < low
        (1 - s) f / factor + s f,  s = (n - low) / (high - low)    between
        f                                                n > high

    Source: `_compute_llama3_parameters` of transformers 5.23, in the same order of operations.
    """

    factor: float
    low: float
    high: float
    n_ctx: int

    def scaled(self, frequency: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """Return the changed frequencies."""
        length = 2 * math.pi / frequency
        slow, fast = length > self.n_ctx / self.low, length < self.n_ctx / self.high
        changed = torch.where(slow, frequency / self.factor, frequency)
        share = (self.n_ctx / length - self.low) / (self.high - self.low)
        between = (1 - share) * changed / self.factor + share * changed
        return torch.where(~slow & ~fast, between, changed)


class Rotary(nn.Module):
    """Cosines and sines of every position; shared by all layers and not saved with the weights.

    Those of the first 4,096 positions are computed at once and those of others when they are asked
    for, because the context of some models has a million positions.

    Args:
        width: Channels that are rotated: the first ones of every head.
        scaling: Change of the frequencies; None: none.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, n_ctx: int, width: int, *, theta: float, scaling: Llama3Scaling | None = None
    ) -> None:
        super().__init__()
        self.n_ctx, self.width, self.theta, self.scaling = n_ctx, width, theta, scaling
        angle = self._angles(min(n_ctx, FIRST_POSITIONS))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, n_pos: int) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines [pos 1 width] of the first `n_pos` positions."""
        if n_pos > len(self.cos):
            # Tensors of inference mode could not be used in training afterwards.
            with torch.inference_mode(mode=False), torch.no_grad():
                angle = self._angles(min(max(n_pos, 2 * len(self.cos)), self.n_ctx))
                # In the type and on the device that the model was moved to.
                self.cos, self.sin = angle.cos().to(self.cos), angle.sin().to(self.sin)
        return self.cos[:n_pos], self.sin[:n_pos]

    def _angles(self, n_pos: int) -> Float[Tensor, "pos 1 width"]:
        # fp32 throughout: Hugging Face rounds the angle in the same way, by 1e-4 at position 2,000.
        # More exact angles would differ from those that published checkpoints were trained with.
        exponent = torch.arange(0, self.width, 2, dtype=torch.float32) / self.width
        frequency = 1.0 / self.theta**exponent
        frequency = frequency if self.scaling is None else self.scaling.scaled(frequency)
        angle = torch.outer(torch.arange(n_pos, dtype=torch.float32), frequency)
        return torch.cat([angle, angle], dim=-1)[:, None, :]


def rotary_of(cfg: GPTConfig) -> Rotary:
    """Return the rotation of an architecture with rotary positions."""
    scaling = None
    if cfg.rope_scaling == "llama3":
        low, high = cfg.rope_low_freq_factor, cfg.rope_high_freq_factor
        scaling = Llama3Scaling(cfg.rope_factor, low, high, cfg.rope_original_ctx)
    return Rotary(cfg.n_ctx, cfg.rotary_dim, theta=cfg.rope_theta, scaling=scaling)


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "pos 1 width"],
    sin: Float[Tensor, "pos 1 width"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotate the pair (i, i + width/2) of every head by its position's angle, as Llama does.

    Channels from `width` on stay as they are.

    Examples:
        >>> from train.model import rotate
        >>> x = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
        >>> cos, sin = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)  # a quarter of a turn
        >>> rotate(x, cos, sin).flatten().tolist()
        [0.0, 1.0]
    """
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([rotate(x[..., :width], cos, sin), x[..., width:]], dim=-1)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
