"""Attention sinks: something to attend to beside the positions.

Without a sink the weights of a head sum to 1, so a head with nothing to do must attend somewhere,
usually to the first token (Xiao et al. 2023, https://arxiv.org/abs/2309.17453). Two kinds:

    learned   every layer has vectors s_j; their keys W_K s_j and values W_V s_j are visible to
              every query
    logit     every head has a score b_h whose value is zero: softmax over [scores, b_h], of which
              the last column is dropped

The query at position t attends to the sinks *and* to positions 0 to t, itself included. Public code
prepends a sink to the keys and keeps the fused kernel's causal mask, whose corner stays where it
was; query t then never sees position t. Sinks have no position: their keys are not rotated.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


__all__ = ["Sinks"]


class Sinks(nn.Module):
    """The sinks of one layer.

    Args:
        kind: "learned" or "logit".
        n_sinks: Number of learned sinks.
    """

    def __init__(self, kind: str, n_sinks: int, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.learned = kind == "learned"
        size = (n_sinks, d_model) if self.learned else (n_heads,)
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float32))

    def prepend(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch longer d_model"]:
        """Put the vectors of learned sinks in front of a layer's input.

        As further positions they pass the matrix that makes keys and values in every row, so the
        gradient of each row is complete (`data_attribution.gradients`).
        """
        if not self.learned:
            return x
        return torch.cat([self.weight.to(x.dtype).expand(len(x), -1, -1), x], dim=1)

    def scores(self, n_heads: int) -> Float[Tensor, "head sink"]:
        """Return what is added to the products of queries and sink keys."""
        if self.learned:
            return self.weight.new_zeros(n_heads, len(self.weight))
        return self.weight[:, None]
