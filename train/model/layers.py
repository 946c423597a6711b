"""The layers of the decoder other than attention: linear maps, tables, MLP and normalisation.

Linear maps and tables are zero until `init_gpt` or a loader sets them. torch fills a new layer from
the global random generator, which takes a second for 124 M weights and changes the random numbers
of the code that runs next.

The MLP works on one position at a time. "gelu" is the exact GELU (erf, as in nanoGPT) and
"gelu-tanh" is OpenAI's tanh approximation (Hugging Face's `gelu_new`). They differ by up to 5e-4
per unit and are easily confused, so each has its own name. SwiGLU (Shazeer 2020) multiplies a SiLU
gate by a linear branch.

LayerNorm (Ba et al. 2016) subtracts the mean and divides by the standard deviation; RMSNorm (Zhang
& Sennrich 2019) only divides by the root mean square. With "none", which compiled programs use, the
value passes unchanged through the input and output hooks. The fused kernel runs unless the scale or
the normalised value has a hook.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from train.model import kernels
from train.model.hooks import HookPoint


__all__ = ["ACTIVATIONS", "MLP", "Linear", "Norm", "PositionTable", "Table", "TokenTable"]


class Linear(nn.Linear):
    """`nn.Linear` in fp32 with weight [out, in], initialised to zero."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias, dtype=torch.float32)

    def reset_parameters(self) -> None:
        """Set the weights to zero; torch calls this on construction."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @property
    def bias_or_zeros(self) -> Float[Tensor, " out"]:
        """The bias; zeros if the layer has none."""
        return self.weight.new_zeros(self.out_features) if self.bias is None else self.bias


class Table(nn.Embedding):
    """`nn.Embedding` in fp32 with weight [row, d_model], initialised to zero."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype=torch.float32)

    def reset_parameters(self) -> None:
        """Set the weights to zero; torch calls this on construction."""
        nn.init.zeros_(self.weight)


class TokenTable(Table):
    """The token embedding, whose rows after the first `d_vocab` are padding."""

    def __init__(self, rows: int, width: int, d_vocab: int) -> None:
        super().__init__(rows, width)
        self.d_vocab = d_vocab

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding, without padding rows."""
        return self.weight[: self.d_vocab]


class PositionTable(Table):
    """The learned embedding of positions."""

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Vector that is added at each position."""
        return self.weight


def _gelu_tanh(x: Tensor) -> Tensor:
    # In bf16 the conversions take what the sigmoid saves.
    if kernels.in_use(x) and x.dtype == torch.float32:
        return kernels.gelu_tanh(x)
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu-tanh": _gelu_tanh,
    "relu": functional.relu,
    "swiglu": functional.silu,
}


class MLP(nn.Module):
    """MLP with activation `kind`, a key of `ACTIVATIONS`; "swiglu" has a third matrix, `gate`."""

    def __init__(self, kind: str, d_model: int, d_mlp: int, *, bias: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[kind]
        self.gate = Linear(d_model, d_mlp, bias=bias) if kind == "swiglu" else None
        self.up = Linear(d_model, d_mlp, bias=bias)
        self.down = Linear(d_mlp, d_model, bias=bias)
        self.hook_pre = HookPoint()  # input of the activation: the gate, if there is one
        if self.gate is not None:
            self.hook_pre_linear = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the output of the MLP: `down(neurons(x))`."""
        return self.down(self.hook_post(self.neurons(x)))

    def neurons(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_mlp"]:
        """Return the activations of the neurons; for swiglu, gate times linear branch."""
        if self.gate is None:
            return self.activation(self.hook_pre(self.up(x)))
        gate = self.activation(self.hook_pre(self.gate(x)))
        return gate * self.hook_pre_linear(self.up(x))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Input weights; for swiglu those of the linear branch."""
        return self.up.weight.T

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:
        """Gate weights; None without a gate."""
        return None if self.gate is None else self.gate.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Output weights."""
        return self.down.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Input bias; zeros if there is none."""
        return self.up.bias_or_zeros

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias; zeros if there is none."""
        return self.down.bias_or_zeros


class Norm(nn.Module):
    """Normalisation: `kind` is "layernorm", "rmsnorm" or "none"; only layernorm can have a bias."""

    def __init__(self, kind: str, width: int, *, eps: float, bias: bool, gain: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.centred = kind == "layernorm"
        self.eps = eps
        self.width = width
        self.weight = (
            nn.Parameter(torch.ones(width, dtype=torch.float32))
            if gain and kind != "none"
            else None
        )
        self.bias = (
            nn.Parameter(torch.zeros(width, dtype=torch.float32)) if bias and self.centred else None
        )
        self.hook_in = HookPoint()
        if kind != "none":
            self.hook_scale = HookPoint()  # the divisor, [batch pos 1]
            self.hook_normalized = HookPoint()  # before gain and bias
        self.hook_out = HookPoint()

    @property
    def w(self) -> Float[Tensor, " width"] | None:
        """Gain; None if there is none."""
        return self.weight

    @property
    def b(self) -> Float[Tensor, " width"] | None:
        """Bias; None if there is none."""
        return self.bias

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalise the last axis."""
        x = self.hook_in(x)
        if self.kind != "none" and (self.hook_scale.hooked or self.hook_normalized.hooked):
            return self.hook_out(self._explicit(x))
        return self.hook_out(self.normalise(x))

    def normalise(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalise the last axis without passing the hook points."""
        if self.kind == "none":
            return x
        if self.centred:
            return functional.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        return functional.rms_norm(x, (self.width,), self.weight, self.eps)

    def _explicit(self, x: Tensor) -> Tensor:
        # At least fp32, as in the fused kernels: squares lose too much precision in bf16.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        out = self.hook_normalized(wide / scale)
        out = out if self.weight is None else out * self.weight
        return (out if self.bias is None else out + self.bias).to(x.dtype)
