"""Retention: attention whose weights are generated from the input, in a causal form.

With d the width of the stream, D = n_heads d_head, rms the RMS norm without gain, and o_t, a_t two
normalised maps of position t, o = rms(rms(x) O^T) and a = rms(rms(x) A^T):

    M  = softmax over rows of (sum_t o_t^T a_t / sqrt(d))                      [d, d]
    P  = (M T^T)^T, whose rows are split into P_qkv | P_gate | P_out           [5 D + d, d]
    wC = (W_qkv, W_gate, W_out), the static weights;  wT = (P_qkv, P_gate, P_out)

A layer runs `aft_passes` times x <- x + AFT(x; wC), each followed by the swap update

    (wT, wC) <- (wC, rms(wT) SiLU(wC) + rms(wC))

for each matrix, and then attention with wC. AFT is the simple attention-free transformer (Zhai et
al. 2021, https://arxiv.org/abs/2105.14103): q and k normalised,

    y_t = sigmoid(q_t) sum_{s<=t} e^{k_s} v_s / (sum_{s<=t} e^{k_s} + 1e-6)

and both end with the gated map W_out (u SiLU(w)), where [u, w] = W_gate y.

**Scope.** In the published form the sum over t runs over *all* positions of *all* rows of a batch.
A logit then depends on later tokens and on the other rows, so the loss is not that of predicting
the next token, and generated text has other weights at every length. Here positions form chunks,
and the weights of a chunk are made of the earlier chunks of the same row; those of the first chunk
are made with P = 0. The published form (`attention="retention-published"`) exists to reproduce it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from train.errors import RecipeError
from train.model.architecture import GPTConfig
from train.model.attention import Heads
from train.model.hooks import HookPoint
from train.model.layers import Linear


__all__ = ["AttentionFree", "Retention", "RetentionAttention"]

# The three matrices of attention, each [batch chunk rows d_in].
Weights = tuple[Tensor, Tensor, Tensor]


def rms(x: Tensor) -> Tensor:
    """Divide by the root mean square of the last axis; no gain."""
    return functional.rms_norm(x, x.shape[-1:])


class Retention(nn.Module):
    """Static weights of a layer's attention, and the maps that generate weights from the input."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        d, wide = cfg.d_model, cfg.n_heads * cfg.d_head
        self.d_model, self.wide = d, wide
        self.chunk = cfg.retention_chunk
        self.published = cfg.attention == "retention-published"
        self.qkv = Linear(d, 3 * wide, bias=False)
        self.gate = Linear(wide, 2 * d, bias=False)
        self.out = Linear(d, d, bias=False)
        self.pair = Linear(d, 2 * d, bias=False)
        self.shape_map = Linear(d, 5 * wide + d, bias=False)
        self.hook_summary = HookPoint()  # M, [batch chunk d_model d_model]
        self.hook_generated = HookPoint()  # P, [batch chunk rows d_model]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> tuple[Weights, Weights]:
        """Return static and generated weights; a chunk axis of 1 holds for all chunks."""
        d, wide = self.d_model, self.wide
        o, a = self.pair(rms(x)).chunk(2, dim=-1)
        o, a = rms(o), rms(a)
        if self.published:
            products = (o.flatten(0, 1).T @ a.flatten(0, 1))[None, None]
        else:
            o, a = split_into_chunks(o, self.chunk), split_into_chunks(a, self.chunk)
            products = o.transpose(-1, -2) @ a  # of each chunk, [batch chunk d d]
            # The sum over *earlier* chunks. Subtracting a chunk from the sum up to it would leave
            # its rounding error behind, by which a logit would depend on later tokens.
            products = functional.pad(products, (0, 0, 0, 0, 1, 0))[:, :-1].cumsum(1)
        summary = self.hook_summary((products * d**-0.5).softmax(dim=-1))
        made = self.shape_map(summary).transpose(-1, -2)
        if not self.published:
            # The first chunk has no earlier one; the softmax of zeros is not zero.
            first = torch.zeros_like(made[:, :1])
            made = torch.cat([first, made[:, 1:]], dim=1)
        made = self.hook_generated(made)
        qkv, gate, out = made.split([3 * wide, 2 * wide, d], dim=-2)
        # [2 D, d] and [2 d, D] hold the same numbers.
        gate = gate.reshape(*gate.shape[:2], 2 * d, wide)
        static = self.qkv.weight[None, None], self.gate.weight[None, None]
        return (*static, self.out.weight[None, None]), (qkv, gate, out)


def swap_weights(current: Weights, other: Weights) -> tuple[Weights, Weights]:
    """Return (wC, wT) after one swap update."""
    new = tuple(
        rms(old) * functional.silu(now) + rms(now) for now, old in zip(current, other, strict=True)
    )
    return new, current  # type: ignore[return-value]


def split_into_chunks(x: Float[Tensor, "batch pos width"], chunk: int) -> Tensor:
    """Return [batch chunk pos width], with zeros behind the last position."""
    missing = -x.shape[1] % chunk
    return functional.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, chunk))


def apply_by_chunk(x: Float[Tensor, "batch pos width"], weight: Tensor, chunk: int) -> Tensor:
    """Return x W^T with the weights of each position's chunk."""
    if weight.shape[:2] == (1, 1):
        return functional.linear(x, weight[0, 0])
    pieces = split_into_chunks(x, chunk) @ weight.transpose(-1, -2).to(x.dtype)
    return pieces.flatten(1, 2)[:, : x.shape[1]]


class AttentionFree(nn.Module):
    """One pass of the attention-free transformer with given weights."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.chunk = cfg.retention_chunk
        self.hook_q = HookPoint()  # q, k, v, y: [batch pos n_heads * d_head]
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_y = HookPoint()
        self.hook_out = HookPoint()  # what is added to the residual stream

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], weights: Weights
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return what the pass adds to the residual stream."""
        q, k, v = apply_by_chunk(rms(x), weights[0], self.chunk).chunk(3, dim=-1)
        q, k, v = self.hook_q(rms(q)), self.hook_k(rms(k)), self.hook_v(v)
        # Summed in at least fp32: keys of norm sqrt(D) have weights up to e^sqrt(D).
        weight = k.to(torch.promote_types(k.dtype, torch.float32)).exp()
        total, values = weight.cumsum(1), (weight * v).cumsum(1)
        y = self.hook_y((q.sigmoid() * values / (total + 1e-6)).to(x.dtype))
        return self.hook_out(gated_output(y, weights, self.chunk))


def gated_output(y: Tensor, weights: Weights, chunk: int) -> Float[Tensor, "batch pos d_model"]:
    """Return W_out (u SiLU(w)), where [u, w] = W_gate y."""
    u, w = apply_by_chunk(y, weights[1], chunk).chunk(2, dim=-1)
    return apply_by_chunk(u * functional.silu(w), weights[2], chunk)


class RetentionAttention(Heads):
    """Attention of the heads of a layer with given weights."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__(cfg)
        self.chunk = cfg.retention_chunk

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        weights: Weights,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return what attention adds to the residual stream; `x` is normalised."""
        parts = apply_by_chunk(x, weights[0], self.chunk).split(self.widths, dim=-1)
        q, k, v = (one.unflatten(-1, (self.n_heads, self.d_head)) for one in parts)
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        q, k = self.normalise_and_rotate(q, k, rotation)
        z = self.hook_z(self.mix(q, k, v))
        return gated_output(z.flatten(-2), weights, self.chunk)

    def __getattr__(self, name: str):
        if name in ("W_Q", "W_K", "W_V", "W_O", "b_QKV", "qkv", "out"):
            raise RecipeError(
                f"this layer has no {name}: retention generates its attention weights from the "
                "input; read attn.hook_q, hook_k, hook_v and hook_z instead"
            )
        return super().__getattr__(name)
