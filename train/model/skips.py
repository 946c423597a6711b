"""Skips between layers: U-Net skips, and a mix of the residual stream with the embedding.

Before layer i of L reads the stream x, with E = L // 2 encoders,

    x <- x + s_i e          i >= E, where e is the output of layer L - 1 - i (U-Net)
    x <- m_i x + n_i x0     x0 is the embedding that entered the first layer

The scalars start at s = 1, m = 1 and n = 0.1. With s = 0, or m = 1 and n = 0, the layer is a plain
one. `GPTConfig.skip_source` says which output is added where.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.model.hooks import HookPoint


__all__ = ["StreamMix"]

EMBEDDING_SHARE = 0.1


class StreamMix(nn.Module):
    """What happens to the residual stream before a layer reads it."""

    def __init__(self, *, skip: bool, mix: bool) -> None:
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones((), dtype=torch.float32)) if skip else None
        self.stream_scale = nn.Parameter(torch.ones((), dtype=torch.float32)) if mix else None
        self.embed_scale = (
            nn.Parameter(torch.full((), EMBEDDING_SHARE, dtype=torch.float32)) if mix else None
        )
        if skip:
            self.hook_skip = HookPoint()  # what the U-Net adds
        if mix:
            self.hook_embed_share = HookPoint()  # what the mix adds

    def forward(
        self,
        x: Float[Tensor, "*batch pos d_model"],
        x0: Float[Tensor, "*prompts pos d_model"],
        skipped: Float[Tensor, "*skips pos d_model"] | None,
    ) -> Float[Tensor, "*batch pos d_model"]:
        """Return the stream that the layer reads; `skipped` is the output that the U-Net adds.

        The axes of `x0` and `skipped` may be the last ones of `x`.
        """
        if self.skip_scale is not None:
            assert skipped is not None
            x = x + self.hook_skip(self.skip_scale * skipped)
        if self.stream_scale is not None and self.embed_scale is not None:
            x = self.stream_scale * x + self.hook_embed_share(self.embed_scale * x0)
        return x
