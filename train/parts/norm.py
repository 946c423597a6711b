"""LayerNorm, RMSNorm or none, with what they divide by in sight.

LayerNorm (Ba et al. 2016) subtracts the mean and divides by the deviation; RMSNorm (Zhang &
Sennrich 2019) only divides by the root mean square; compiled programs do neither, and keep only
the points where the value comes in and goes out. The fused kernel runs unless somebody looks at
the scale or the normalised value.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from train.hook_points import HookPoint


__all__ = ["Norm"]


class Norm(nn.Module):
    """`kind` is "layernorm", "rmsnorm" or "none"; only a layernorm can have a bias."""

    def __init__(self, kind: str, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.centred = kind == "layernorm"
        self.eps = eps
        self.weight = None if kind == "none" else nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias and self.centred else None
        self.hook_in = HookPoint()
        if kind != "none":
            self.hook_scale = HookPoint()  # [batch pos 1], what is divided by
            self.hook_normalized = HookPoint()  # before gain and bias
        self.hook_out = HookPoint()

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalise the last axis."""
        x = self.hook_in(x)
        if self.weight is None:
            return self.hook_out(x)
        if self.hook_scale.hooked or self.hook_normalized.hooked:
            return self.hook_out(self._explicit(x, self.weight))
        if self.centred:
            return self.hook_out(
                functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
            )
        return self.hook_out(functional.rms_norm(x, self.weight.shape, self.weight, self.eps))

    def _explicit(self, x: Tensor, gain: Tensor) -> Tensor:
        # At least fp32, as inside the fused kernels: squares lose too much in bf16.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        out = self.hook_normalized(wide / scale) * gain
        return (out if self.bias is None else out + self.bias).to(x.dtype)
