"""Value residual: a layer adds a gated map of the embedding to its values.

    v <- v + 2 sigmoid(W_gate x[:32]) (W x0)

where x is the layer's normed input and x0 the embedding that entered the first layer. The gate's
weights start at 0, so the factor starts at 1.
"""

from jaxtyping import Float
from torch import Tensor, nn

from train.model.hooks import HookPoint
from train.model.layers import Linear


__all__ = ["ValueResidual"]


class ValueResidual(nn.Module):
    """The addition to the values of one layer, one for each key-value head."""

    def __init__(self, d_model: int, n_key_value_heads: int, d_head: int, width: int) -> None:
        super().__init__()
        self.d_head, self.width = d_head, width
        self.value = Linear(d_model, n_key_value_heads * d_head, bias=False)
        self.value_gate = Linear(width, n_key_value_heads, bias=False)
        self.hook_gate = HookPoint()  # [batch pos kv_head]
        self.hook_out = HookPoint()  # [batch pos kv_head d_head]

    def forward(
        self, x: Float[Tensor, "*batch d_model"], x0: Float[Tensor, "*prompts d_model"]
    ) -> Float[Tensor, "*batch kv_head d_head"]:
        """Return what is added to the values; the axes of `x0` may be the last ones of `x`."""
        gate = self.hook_gate(2 * self.value_gate(x[..., : self.width]).sigmoid())
        return self.hook_out(gate[..., None] * self.value(x0).unflatten(-1, (-1, self.d_head)))
