"""Head gates: every head's output is scaled by a gate that reads the layer's input.

    z_h <- z_h sigmoid(w_h . x[:12])

The weights start at 0, so every gate starts at one half.
"""

from jaxtyping import Float
from torch import Tensor

from train.model.hooks import HookPoint
from train.model.layers import Linear


__all__ = ["HeadGate"]


class HeadGate(Linear):
    """The gates of one layer; they read the first `width` channels of the normed input."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__(width, n_heads, bias=False)
        self.hook_gate = HookPoint()  # [batch pos head]

    def forward(self, input: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch head"]:
        """Return the gate of every head."""
        return self.hook_gate(super().forward(input[..., : self.in_features]).sigmoid())
