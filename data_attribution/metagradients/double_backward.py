"""Linear maps, LayerNorm, GELU and cross-entropy that are cheap to differentiate twice.

torch computes second derivatives in many passes over memory: those of cross-entropy and of GELU's
tanh approximation took a third of a reversed step at the planted shape. Here each takes a few
passes, using torch's own kernels. A reversed step takes .82 to .84 of the CPU time that it took
with GELU alone, and 3.0 and 3.4 times a training step where it was 3.5 and 4.1 (two measurements on
a busy machine, the minimum of 8 and 10 alternating runs).

Nobody needs the value of the gradient that is differentiated. So a backward pass under
`create_graph=True` does not compute the weight gradients of linear maps: it fills them with NaN, so
that nobody can read them by mistake. Their derivatives are correct.

Every operation consists of two autograd functions. The first computes the operation, and its
backward pass calls the second. The second computes the gradient, and its backward pass is the
derivative of the gradient, given as a formula. In the formulas, g is the gradient arriving from
above, and a, B, c are the gradients that arrive for the outputs of the second function.
"""

from math import pi, sqrt
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from train.data import IGNORED
from train.model import GPT, Linear, Norm


__all__ = ["gelu_tanh", "layer_norm", "linear", "quicken", "target_losses"]

INNER, CUBIC = sqrt(2 / pi), 0.044715  # gelu(x) = x / 2 (1 + tanh(INNER (x + CUBIC x^3)))


@runtime_checkable
class _Context(Protocol):
    """The object in which torch carries tensors from the forward to the backward pass."""

    saved_tensors: tuple[Any, ...]  # tensors, and None where None was saved

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


def quicken(model: GPT) -> GPT:
    """Give a model the functions of this file, in place; its values stay bit-identical."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = _QuickLinear
        elif type(module) is Norm and module.centred:
            module.__class__ = _QuickNorm
    if model.cfg.mlp == "gelu-tanh":
        for block in model.blocks:
            block.mlp.activation = gelu_tanh  # type: ignore[union-attr]
    return model


class _QuickLinear(Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _QuickNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None or self.hook_scale.hooked or self.hook_normalized.hooked:
            return super().forward(x)
        return self.hook_out(layer_norm(self.hook_in(x), self.weight, self.bias, self.eps))


def linear(
    x: Float[Tensor, "*any in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
) -> Float[Tensor, "*any out"]:
    """Return `torch.nn.functional.linear`; in a gradient with a graph the weights' part is NaN."""
    flat = x.reshape(-1, x.shape[-1])
    return _Linear.apply(flat, weight, bias).view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: _Context, *above: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _LinearBack.apply(above[0], x, weight, bias is not None)  # type: ignore[no-any-return]
        return above[0] @ weight, above[0].T @ x, None if bias is None else above[0].sum(0)


class _LinearBack(torch.autograd.Function):
    """The gradient dx = g W, dW = g^T x, db = 1^T g, as a function of g, x and W."""

    @staticmethod
    def forward(
        ctx: _Context, above: Tensor, x: Tensor, weight: Tensor, biased: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(above, x, weight)
        # A NaN of stride 0: no memory for a gradient that nobody reads.
        unread = above.new_full((), torch.nan)
        on_bias = unread.expand(len(weight)) if biased else None
        return above @ weight, unread.expand(weight.shape), on_bias

    @staticmethod
    def backward(ctx: _Context, *pulls: Any) -> tuple[Tensor | None, ...]:
        above, x, weight = ctx.saved_tensors
        on_x, on_weight, on_bias = pulls
        # Derivatives of <a, g W> + <B, g^T x> + <c, 1^T g>:
        #   with respect to g: a W^T + x B^T + 1 c^T    to x: g B    to W: g^T a
        on_above = functional.linear(on_x, weight, on_bias)
        on_above.addmm_(x, on_weight.T)
        return on_above, above @ on_weight, above.T @ on_x, None


def layer_norm(
    x: Float[Tensor, "*any width"],
    gain: Float[Tensor, " width"],
    bias: Float[Tensor, " width"] | None,
    eps: float,
) -> Float[Tensor, "*any width"]:
    """Return `torch.nn.functional.layer_norm` over the last axis."""
    return _Norm.apply(x, gain, bias, eps)  # type: ignore[no-any-return]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, gain: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        out, mean, scale = torch.native_layer_norm(x, gain.shape, gain, bias, eps)
        ctx.save_for_backward(x, gain, bias, mean, scale)
        return out

    @staticmethod
    def backward(ctx: _Context, *above: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormBack.apply(above[0], *ctx.saved_tensors), None


class _NormBack(torch.autograd.Function):
    """The gradient dx = J (gain g), dgain = sum g n, dbias = sum g, with n = (x - mean) scale.

    J = scale (1 - 11^T/width - n n^T/width) is symmetric, and is dn/dx as well.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        above: Tensor,
        x: Tensor,
        gain: Tensor,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor | None, ...]:
        wanted = [True, True, bias is not None]
        found = torch.ops.aten.native_layer_norm_backward(
            above, x, gain.shape, mean, scale, gain, bias, wanted
        )
        ctx.save_for_backward(above, x, gain, mean, scale, found[0])
        return found[0], found[1], None if bias is None else found[2]

    @staticmethod
    def backward(ctx: _Context, *pulls: Any) -> tuple[Tensor | None, ...]:
        above, x, gain, mean, scale, back = ctx.saved_tensors
        on_x, on_gain, on_bias = pulls

        # J value: the backward pass of LayerNorm without a gain.
        def jacobian(value: Tensor) -> Tensor:
            return torch.ops.aten.native_layer_norm_backward(
                value, x, gain.shape, mean, scale, None, None, [True, False, False]
            )[0]

        # Derivatives of <a, J (gain g)> + <B, sum g n> + <c, sum g>. J and n depend on x:
        #   with respect to g:     gain (J a) + n B + c
        #   with respect to gain:  sum g (J a)
        #   through n:     J (g B - a <gain g, n> scale/width - gain g <a, n> scale/width)
        #   through scale: -n <a, J (gain g)> scale/width, because d scale/dx = -scale^2 n / width
        width = x.shape[-1]
        n = (x - mean).mul_(scale)
        through = jacobian(on_x)
        on_above = (through * gain).addcmul_(n, on_gain)
        if on_bias is not None:
            on_above += on_bias
        inner = above * gain
        first = torch.linalg.vecdot(on_x, n)[..., None].mul_(scale / width)
        second = torch.linalg.vecdot(inner, n)[..., None].mul_(scale / width)
        both = torch.linalg.vecdot(on_x, back)[..., None].mul_(scale / width)
        bent = (above * on_gain).addcmul_(on_x, second, value=-1).addcmul_(inner, first, value=-1)
        on_point = jacobian(bent).addcmul_(n, both, value=-1)
        return on_above, on_point, through.mul_(above).flatten(0, -2).sum(0), None, None, None


def gelu_tanh(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return `torch.nn.functional.gelu(x, approximate="tanh")`."""
    return _Gelu.apply(x)  # type: ignore[no-any-return]


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: _Context, *above: Tensor) -> Tensor:
        return _Slope.apply(above[0], *ctx.saved_tensors)  # type: ignore[no-any-return]


class _Slope(torch.autograd.Function):
    """The gradient dx = g gelu'(x), as a function of g and of x."""

    @staticmethod
    def forward(ctx: _Context, above: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(above, x)
        return torch.ops.aten.gelu_backward(above, x, approximate="tanh")

    @staticmethod
    def backward(ctx: _Context, *cotangent: Tensor) -> tuple[Tensor, Tensor]:
        above, x = ctx.saved_tensors
        # Derivatives of <a, g gelu'(x)>: with respect to g, a gelu'(x); to x, a g gelu''(x).
        on_above = torch.ops.aten.gelu_backward(cotangent[0], x, approximate="tanh")
        return on_above, _bend(x).mul_(above).mul_(cotangent[0])


def _bend(x: Tensor) -> Tensor:
    """Return GELU's second derivative.

    With k = INNER, a = CUBIC, u = k (x + a x^3), u' = du/dx and t = tanh u, it is

        (1 - t^2) (k + 6 k a x^2 - x t u'^2).
    """
    square = x.square()
    slope = (square * (3 * INNER * CUBIC)).add_(INNER)  # u'
    tanh = (square * (INNER * CUBIC)).add_(INNER).mul_(x).tanh_()
    inside = square.mul_(6 * INNER * CUBIC).add_(INNER)
    inside.addcmul_(slope.square_().mul_(x), tanh, value=-1)
    return inside.mul_(tanh.square_().neg_().add_(1))


def target_losses(
    logits: Float[Tensor, "*batch pos vocab"], targets: Int[Tensor, "*batch pos"]
) -> Float[Tensor, "*batch pos"]:
    """Return the cross-entropy of every target, in nats; 0 where there is none."""
    return _Losses.apply(logits, targets)  # type: ignore[no-any-return]


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, logits: Tensor, targets: Tensor) -> Tensor:
        counted = targets != IGNORED
        column = targets.clamp(min=0)[..., None]
        chances = logits.log_softmax(dim=-1)
        losses = chances.gather(-1, column)[..., 0].neg_().mul_(counted)
        ctx.save_for_backward(logits, chances.exp_(), column, counted)
        return losses

    @staticmethod
    def backward(ctx: _Context, *above: Tensor) -> tuple[Tensor, None]:
        return _LossesBack.apply(above[0], *ctx.saved_tensors), None  # type: ignore[return-value]


class _LossesBack(torch.autograd.Function):
    """The gradient (p - e) s of the losses by the logits, as a function of s and of the logits.

    p is the softmax, e is one at the target and zero elsewhere, s is the gradient from above.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        above: Tensor,
        logits: Tensor,
        chances: Tensor,
        column: Tensor,
        counted: Tensor,
    ) -> Tensor:
        share = (above * counted)[..., None]
        ctx.save_for_backward(share, chances, column, counted)
        return (chances * share).scatter_add_(-1, column, -share)

    @staticmethod
    def backward(ctx: _Context, *pull: Tensor) -> tuple[Tensor | None, ...]:
        share, chances, column, counted = ctx.saved_tensors
        # With v the gradient that arrives, the derivatives of <v, (p - e) s> are: with respect to
        # s, p . v - v[target]; to the logits, s (p v - p (p . v)).
        weighed = chances * pull[0]
        mean = weighed.sum(-1, keepdim=True)
        on_above = (mean - pull[0].gather(-1, column))[..., 0].mul_(counted)
        return on_above, weighed.addcmul_(chances, mean, value=-1).mul_(share), None, None, None
