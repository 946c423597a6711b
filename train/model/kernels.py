"""Faster ways to compute what torch computes slowly on a CPU, for the forward pass of training.

`Numerics.kernels` says which a run uses. 1: torch's own. 2: those of this module, namely

    causal attention in blocks of queries, each with the keys up to its end, for more positions than
    one block. torch's kernel and the explicit computation also multiply the upper triangle, which
    the mask then hides.

    gelu-tanh in fp32 as x sigmoid(2u), with u = sqrt(2/pi) (x + .044715 x^3). It equals
    x (1 + tanh u) / 2, and torch's sigmoid takes a quarter of the time of its tanh.

Both agree with torch's own within rounding, not to the bit. So they are used inside
`use_kernels(2)` only, which the trainer enters: analysis, hooks and patches compute with torch's
own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import pi, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


__all__ = ["block_length", "causal_attention", "gelu_tanh", "in_use", "use_kernels"]

# Queries of a block: the fastest of 64, 128 and 256 with 256 positions, as with 1,024. A short
# block hides less and multiplies smaller matrices.
BLOCK = {torch.float32: 64, torch.bfloat16: 128}
# 2u = x (LINEAR + CUBIC x^2)
LINEAR = 2 * sqrt(2 / pi)
CUBIC = LINEAR * 0.044715
_number: ContextVar[int] = ContextVar("kernels", default=1)


@contextmanager
def use_kernels(number: int) -> Iterator[None]:
    """Compute with the kernels of this number inside the block.

    Examples:
        >>> from train.model import kernels, use_kernels
        >>> with use_kernels(2):
        ...     kernels.in_use(torch.zeros(1))
        ...
        True
        >>> kernels.in_use(torch.zeros(1))
        False
    """
    token = _number.set(number)
    try:
        yield
    finally:
        _number.reset(token)


def in_use(x: Tensor) -> bool:
    """Return whether these kernels compute with `x`: on a CPU, inside `use_kernels(2)`.

    Examples:
        >>> from train.model import kernels
        >>> kernels.in_use(torch.zeros(1))
        False
    """
    return _number.get() >= 2 and x.device.type == "cpu" and x.dtype in BLOCK


def block_length(q: Float[Tensor, "batch head pos d_head"]) -> int:
    """Return how many queries a block of causal attention has; with one block nothing is saved.

    Examples:
        >>> from train.model import kernels
        >>> kernels.block_length(torch.zeros(1, 1, 256, 4))
        64
    """
    return BLOCK[q.dtype]


def causal_attention(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
) -> Float[Tensor, "batch head pos d_head"]:
    """Return softmax(q k^T / sqrt(d_head)) v, where each query sees the keys up to its position.

    Examples:
        >>> from train.model import kernels
        >>> q, k, v = torch.randn(3, 1, 2, 100, 8)
        >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        >>> torch.allclose(kernels.causal_attention(q, k, v), exact, atol=1e-6)
        True
    """
    # Autocast would compute softmax from and to fp32; torch's softmax of bf16 adds in fp32 anyway.
    with torch.autocast("cpu", enabled=False):
        return _CausalAttention.apply(q, k, v)  # pyright: ignore[reportReturnType]


def gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return OpenAI's tanh approximation of GELU.

    Examples:
        >>> from train.model import kernels
        >>> x = torch.linspace(-3, 3, 7)
        >>> exact = torch.nn.functional.gelu(x, approximate="tanh")
        >>> torch.allclose(kernels.gelu_tanh(x), exact, atol=1e-6)
        True
    """
    return _GeluTanh.apply(x)  # pyright: ignore[reportReturnType]


class _CausalAttention(Function):
    """Causal attention in blocks of queries; the patterns are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        size, scale, empty = block_length(q), q.shape[-1] ** -0.5, q.new_empty(())
        queries = _blocks(q, size)
        keys, values = k.flatten(0, 1), v.flatten(0, 1)
        lowest = torch.finfo(q.dtype).min
        future = torch.full((size, size), lowest, dtype=q.dtype).triu(1)
        patterns, mixed, end = [], [], 0
        for block in queries:
            begin, n = end, block.shape[1]
            end = begin + n
            scores = torch.baddbmm(empty, block, keys[:, :end].mT, beta=0, alpha=scale)
            scores[:, :, begin:] += future[:n, :n]
            patterns.append(scores.softmax(-1))
            mixed.append(patterns[-1] @ values[:, :end])
        ctx.n_blocks, ctx.shape = len(queries), q.shape
        ctx.save_for_backward(*queries, *patterns, keys, values)
        return _joined(mixed, q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        *saved, keys, values = ctx.saved_tensors
        queries, patterns = saved[: ctx.n_blocks], saved[ctx.n_blocks :]
        scale, empty = keys.shape[-1] ** -0.5, keys.new_empty(())
        of_queries, of_keys, of_values = [], None, None
        # The last block has all keys, so the gradients of keys and values begin with its.
        rows = _blocks(gradient, queries[0].shape[1])
        for block, pattern, row in reversed([*zip(queries, patterns, rows, strict=True)]):
            end = pattern.shape[2]
            of_pattern = row @ values[:, :end].mT
            of_scores = torch.ops.aten._softmax_backward_data(
                of_pattern, pattern, -1, pattern.dtype
            )
            of_queries.append(torch.baddbmm(empty, of_scores, keys[:, :end], beta=0, alpha=scale))
            to_keys = torch.baddbmm(empty, of_scores.mT, block, beta=0, alpha=scale)
            to_values = pattern.mT @ row
            if of_keys is None or of_values is None:
                of_keys, of_values = to_keys, to_values
            else:
                of_keys[:, :end] += to_keys
                of_values[:, :end] += to_values
        assert of_keys is not None
        assert of_values is not None
        of_q = _joined(of_queries[::-1], ctx.shape)
        return of_q, of_keys.view(ctx.shape), of_values.view(ctx.shape)


def _blocks(x: Float[Tensor, "batch head pos d_head"], size: int) -> list[Tensor]:
    """Return blocks of positions, each [batch*head size d_head] and contiguous."""
    return [block.flatten(0, 1).contiguous() for block in x.split(size, dim=2)]


def _joined(blocks: list[Tensor], shape: torch.Size) -> Float[Tensor, "batch head pos d_head"]:
    """Return the inverse of `_blocks`, with the heads of a position side by side in memory."""
    parts = [block.unflatten(0, shape[:2]).transpose(1, 2) for block in blocks]
    return torch.cat(parts, dim=1).transpose(1, 2)


class _GeluTanh(Function):
    """gelu-tanh; the sigmoid is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        share = x * x
        share.mul_(CUBIC).add_(LINEAR).mul_(x).sigmoid_()
        ctx.save_for_backward(x, share)
        return x * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        # y = x s has the slope s + x s (1 - s) (LINEAR + 3 CUBIC x^2).
        x, share = ctx.saved_tensors
        slope = x * x
        slope.mul_(3 * CUBIC).add_(LINEAR).mul_(x).mul_(share)
        return slope.addcmul_(slope, share, value=-1).add_(share).mul_(gradient)
