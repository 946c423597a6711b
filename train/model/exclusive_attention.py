"""Exclusive self-attention: a head's output without the part that lies along its own value.

With y_t the output of a head at position t, v_t its value there and v^ = v_t / max(|v_t|, 1e-4),

    z_t = y_t - alpha (y_t . v^) v^

(https://arxiv.org/abs/2603.09078). At alpha = 1 the output is orthogonal to the position's own
value, so a head says nothing that the position knew already; at 0 it is plain attention.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.model.hooks import HookPoint


__all__ = ["OwnValueRemoval"]

SHORTEST = 1e-4


class OwnValueRemoval(nn.Module):
    """Remover of a head's own value: alpha is 1, or tanh of a learned number of each head."""

    def __init__(self, n_heads: int, *, learned: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        # tanh(0) = 0: training starts at plain attention.
        self.weight = nn.Parameter(torch.zeros(n_heads, dtype=torch.float32)) if learned else None
        self.hook_coefficient = HookPoint()  # alpha, [batch pos head]

    def forward(
        self, y: Float[Tensor, "batch pos head d_head"], v: Float[Tensor, "batch pos head d_head"]
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Return z; `v` are the values at the same positions, one for each query head."""
        if self.weight is None:
            alpha = y.new_ones(y.shape[:3])
        else:
            alpha = self.weight.tanh().to(y.dtype).expand(y.shape[:3])
        return self.remove(y, v, self.hook_coefficient(alpha))

    @staticmethod
    def remove(y: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
        """Return y - alpha (y . v^) v^ over the last axis; `alpha` lacks that axis."""
        unit = v / v.norm(dim=-1, keepdim=True).clamp(min=SHORTEST)
        return y - alpha[..., None] * (y * unit).sum(-1, keepdim=True) * unit
