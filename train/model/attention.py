"""Multi-head attention, optionally with fewer key-value heads than query heads (grouped queries).

Grouped-query attention: Ainslie et al. 2023. torch's fused kernel runs if it is fast and there are
no hooks on the scores or the pattern; otherwise the same computation is done step by step. Queries,
keys and values come from one matrix `qkv`, whose rows are all query heads, then all key heads, then
all value heads.
"""

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from train.model.hooks import HookPoint
from train.model.layers import Linear
from train.model.positional import rotate


__all__ = ["Attention"]


class Attention(nn.Module):
    """Attention layer; every key-value head serves `n_heads / n_key_value_heads` query heads."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        d_head: int,
        n_key_value_heads: int,
        bias: bool,
        rotary: bool,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.n_heads, self.n_key_value_heads, self.d_head = n_heads, n_key_value_heads, d_head
        self.widths = [n_heads * d_head, n_key_value_heads * d_head, n_key_value_heads * d_head]
        self.qkv = Linear(d_model, sum(self.widths), bias=bias)
        self.out = Linear(n_heads * d_head, d_model, bias=bias)
        self.hook_q = HookPoint()  # q, k, v, z: [batch pos head d_head]
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        if rotary:
            self.hook_rot_q = HookPoint()
            self.hook_rot_k = HookPoint()
        self.hook_attn_scores = HookPoint()  # [batch head query key], the future at -3.4e38
        self.hook_pattern = HookPoint()
        self.hook_z = HookPoint()
        self.hook_result = HookPoint()  # [batch pos head d_model], before the bias

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Mix values over the positions up to each position (causal), or over all positions."""
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        q = self.hook_q(q.unflatten(-1, (self.n_heads, self.d_head)))
        k = self.hook_k(k.unflatten(-1, (self.n_key_value_heads, self.d_head)))
        v = self.hook_v(v.unflatten(-1, (self.n_key_value_heads, self.d_head)))
        if rotation is not None:
            q = self.hook_rot_q(rotate(q, *rotation))
            k = self.hook_rot_k(rotate(k, *rotation))
        z = self.hook_z(self._mix(q, k, v))
        if self.hook_result.hooked:
            return self._sum_of_heads(z)
        return self.out(z.flatten(-2))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "batch pos head d_head"]:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.n_key_value_heads < self.n_heads:
            shared_by = self.n_heads // self.n_key_value_heads
            k, v = k.repeat_interleave(shared_by, dim=1), v.repeat_interleave(shared_by, dim=1)
        # torch 2.13's fused kernel is slow in bf16 on a CPU: forward and backward of 32 x 4 heads x
        # 64 positions take 15.2 ms on one core, the explicit computation 2.5 ms (the fastest of 20
        # runs each; for whole training steps see benchmarks/attention_cpu.py).
        slow = q.dtype == torch.bfloat16 and q.device.type == "cpu"
        if slow or self.hook_attn_scores.hooked or self.hook_pattern.hooked:
            return self.explicit_attention(q, k, v).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return mixed.transpose(1, 2)

    def explicit_attention(
        self, q: Tensor, k: Tensor, v: Tensor
    ) -> Float[Tensor, "batch head pos d_head"]:
        # pattern = softmax(q k^T / sqrt(d_head) + future), where `future` is 0 unless causal.
        n_pos, shape = q.shape[2], q.shape[:2]
        # The lowest finite number, as in Hugging Face: -inf would give inf - inf = nan in hooks.
        lowest = torch.finfo(q.dtype).min
        hidden = lowest if self.causal else 0.0
        future = torch.full((n_pos, n_pos), hidden, dtype=q.dtype, device=q.device).triu(1)
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=self.d_head**-0.5)
        scores = self.hook_attn_scores(scores.unflatten(0, shape))
        pattern = self.hook_pattern(scores.softmax(dim=-1)).to(v.dtype)
        return (pattern.flatten(0, 1) @ v).unflatten(0, shape)

    def _sum_of_heads(self, z: Tensor) -> Float[Tensor, "batch pos d_model"]:
        result = einsum(
            z, self.W_O, "batch pos head d_head, head d_head d_model -> batch pos head d_model"
        )
        total = self.hook_result(result).sum(dim=-2)
        return total if self.out.bias is None else total + self.out.bias

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights of each head."""
        return self._per_head(self.qkv.weight.split(self.widths)[0])

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights of each query head; shared keys are repeated."""
        return self._per_head(self.qkv.weight.split(self.widths)[1])

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights of each query head; shared values are repeated."""
        return self._per_head(self.qkv.weight.split(self.widths)[2])

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of each head."""
        return rearrange(
            self.out.weight, "d_model (head d_head) -> head d_head d_model", head=self.n_heads
        )

    @property
    def b_QKV(self) -> tuple[Tensor, Tensor, Tensor]:
        """Biases of queries, keys and values, each [head d_head]; zeros if the model has none."""
        bias = self.qkv.bias
        if bias is None:
            bias = self.qkv.weight.new_zeros(sum(self.widths))
        q, k, v = (self._per_head(part[:, None])[:, 0] for part in bias.split(self.widths))
        return q, k, v

    def _per_head(self, rows: Tensor) -> Float[Tensor, "head d_in d_head"]:
        """Split rows [heads * d_head, d_in] into one matrix for each query head."""
        shared_by = self.n_heads * self.d_head // rows.shape[0]
        return repeat(
            rows,
            "(head d_head) d_in -> (head shared) d_in d_head",
            d_head=self.d_head,
            shared=shared_by,
        )
