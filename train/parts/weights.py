"""TransformerLens' names for the weights, stacked over layers.

Every property builds its answer anew, so fetch it once before a loop. Missing biases are zeros.
Matrices map left to right: `residual @ W_Q[layer, head]` is a query.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.architecture import GPTConfig


__all__ = ["StackedWeights"]


class StackedWeights(nn.Module):
    """Read-only views of a decoder's weights; gradients flow through them."""

    cfg: GPTConfig
    blocks: nn.ModuleList

    def _stack(self, of: Callable) -> Tensor:
        return torch.stack([of(block) for block in self.blocks])

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Queries."""
        return self._stack(lambda block: block.attn.W_Q)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Keys; shared ones are repeated, so the head axis is that of the queries."""
        return self._stack(lambda block: block.attn.W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Values; shared ones are repeated."""
        return self._stack(lambda block: block.attn.W_V)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Attention output."""
        return self._stack(lambda block: block.attn.W_O)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query bias."""
        return self._stack(lambda block: block.attn.b_QKV[0])

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key bias."""
        return self._stack(lambda block: block.attn.b_QKV[1])

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value bias."""
        return self._stack(lambda block: block.attn.b_QKV[2])

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Attention output bias."""
        return self._stack(lambda block: _bias(block.attn.out))

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Into the MLP; the linear branch under swiglu."""
        return self._stack(lambda block: block.mlp.up.weight.T)

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:
        """Gate of a swiglu MLP; None for the others."""
        if not self.cfg.gated_mlp:
            return None
        return self._stack(lambda block: block.mlp.gate.weight.T)

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """Out of the MLP."""
        return self._stack(lambda block: block.mlp.down.weight.T)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """Bias into the MLP."""
        return self._stack(lambda block: _bias(block.mlp.up))

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Bias out of the MLP."""
        return self._stack(lambda block: _bias(block.mlp.down))


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
