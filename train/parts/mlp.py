"""The part that works on one position at a time.

GELU is meant exactly (erf, what nanoGPT computes) or as OpenAI's tanh approximation ("gelu-tanh",
Hugging Face's `gelu_new`): they differ by up to 5e-4 per unit, silently, so the name decides.
SwiGLU (Shazeer 2020) multiplies a SiLU gate with a linear branch.
"""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from train.hook_points import HookPoint
from train.parts.linear import Linear


__all__ = ["ACTIVATIONS", "MLP"]

ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu-tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "swiglu": functional.silu,
}


class MLP(nn.Module):
    """`kind` is a key of `ACTIVATIONS`; "swiglu" has a third matrix, `gate`."""

    def __init__(self, kind: str, d_model: int, d_mlp: int, *, bias: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[kind]
        self.gate = Linear(d_model, d_mlp, bias=bias) if kind == "swiglu" else None
        self.up = Linear(d_model, d_mlp, bias=bias)
        self.down = Linear(d_mlp, d_model, bias=bias)
        self.hook_pre = HookPoint()  # what goes into the activation: the gate, when there is one
        if self.gate is not None:
            self.hook_pre_linear = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Up, activate (gated by the other branch under swiglu), down."""
        return self.down(self.hook_post(self.neurons(x)))

    def neurons(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_mlp"]:
        """What the neurons say, before they are written to the residual stream."""
        if self.gate is None:
            return self.activation(self.hook_pre(self.up(x)))
        gate = self.activation(self.hook_pre(self.gate(x)))
        return gate * self.hook_pre_linear(self.up(x))
