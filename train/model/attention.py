"""Multi-head attention, optionally with fewer key-value heads than query heads (grouped queries).

Grouped-query attention: Ainslie et al. 2023. torch's fused kernel runs if it is fast and there are
no hooks on the scores or the pattern; otherwise the same computation is done step by step. Queries,
keys and values come from one matrix `qkv`, whose rows are all query heads, then all key heads, then
all value heads.

The parts that a `GPTConfig` can add are in modules of their own and apply in this order: value
residual; normalised queries and keys; rotation; sinks; removal of the own value; head gates.
`hook_v` is the value that attention mixes (after the value residual), `hook_q` and `hook_k` are
queries and keys before normalisation and rotation, and `hook_z` is what the output matrix reads.
"""

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from train.model import kernels
from train.model.architecture import HEAD_GATE_WIDTH, VALUE_GATE_WIDTH, GPTConfig
from train.model.attention_sinks import Sinks
from train.model.exclusive_attention import OwnValueRemoval
from train.model.head_gate import HeadGate
from train.model.hooks import HookPoint
from train.model.layers import Linear, Norm
from train.model.positional import rotate
from train.model.value_residual import ValueResidual


__all__ = ["Attention", "Heads", "key_hook"]


def key_hook(cfg: GPTConfig) -> str:
    """Return the hook point, in a layer's `attn`, of the keys as queries meet them.

    Examples:
        >>> from train.model import key_hook, preset
        >>> key_hook(preset("gpt2")), key_hook(preset("modern"))
        ('hook_k', 'hook_rot_k')
    """
    if cfg.position == "rope":
        return "hook_rot_k"
    return "k_norm.hook_out" if cfg.qk_norm else "hook_k"


class Heads(nn.Module):
    """The heads of a layer: what is between the matrices that make q, k, v and the output matrix.

    Every key-value head serves `n_heads / n_key_value_heads` query heads.
    """

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.causal, self.window = cfg.causal, cfg.window
        self.n_heads, self.n_key_value_heads = cfg.n_heads, cfg.n_key_value_heads
        self.d_head = cfg.d_head
        shared = cfg.n_key_value_heads * cfg.d_head
        self.widths = [cfg.n_heads * cfg.d_head, shared, shared]
        self.explicit = cfg.attention == "explicit"
        self.hook_q = HookPoint()  # q, k, v, z: [batch pos head d_head]
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        norm = {"eps": cfg.norm_eps, "bias": False, "gain": cfg.norm_gain}
        self.q_norm = Norm("rmsnorm", cfg.d_head, **norm) if cfg.qk_norm else None
        self.k_norm = Norm("rmsnorm", cfg.d_head, **norm) if cfg.qk_norm else None
        if cfg.position == "rope":
            self.hook_rot_q = HookPoint()
            self.hook_rot_k = HookPoint()
        self.sinks = None
        if cfg.sinks != "none":
            self.sinks = Sinks(cfg.sinks, cfg.n_sinks, cfg.d_model, cfg.n_heads)
            self.hook_sink_pattern = HookPoint()  # [batch head query sink]
        self.exclusive = None
        if cfg.exclusive != "none":
            self.exclusive = OwnValueRemoval(cfg.n_heads, learned=cfg.exclusive == "learned")
        self.head_gate = None
        if cfg.head_gate:
            self.head_gate = HeadGate(min(HEAD_GATE_WIDTH, cfg.d_model), cfg.n_heads)
        self.hook_attn_scores = HookPoint()  # [batch head query key], the future at -3.4e38
        self.hook_pattern = HookPoint()
        self.hook_z = HookPoint()

    def normalise_and_rotate(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key kv_head d_head"],
        rotation: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Normalise and rotate queries and keys, each if the architecture says so."""
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q = self.hook_rot_q(rotate(q, *rotation))
            k = self.hook_rot_k(rotate(k, *rotation))
        return q, k

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink_kv: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Return the weighted values of each query; q and k are normalised and rotated."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.n_key_value_heads < self.n_heads:
            shared_by = self.n_heads // self.n_key_value_heads
            k, v = k.repeat_interleave(shared_by, dim=1), v.repeat_interleave(shared_by, dim=1)
        # torch 2.13's fused kernel is slow in bf16 on a CPU: forward and backward of 32 x 4 heads x
        # 64 positions take 15.2 ms on one core, the explicit computation 2.5 ms (the fastest of 20
        # runs each; for whole training steps see benchmarks/attention_cpu.py).
        slow = q.dtype == torch.bfloat16 and q.device.type == "cpu"
        hooked = self.hook_attn_scores.hooked or self.hook_pattern.hooked
        hooked |= self.sinks is not None and self.hook_sink_pattern.hooked
        windowed = 0 < self.window < q.shape[2]
        plain = self.causal and self.sinks is None and not (self.explicit or hooked or windowed)
        if plain and kernels.in_use(q) and q.shape[2] > kernels.block_length(q):
            return kernels.causal_attention(q, k, v).transpose(1, 2)
        if self.explicit or slow or hooked:
            return self.explicit_attention(q, k, v, sink_kv).transpose(1, 2)
        if windowed and self.sinks is None:
            mask = self.hidden(q.shape[2], q, -torch.inf)
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        if self.sinks is None:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            return mixed.transpose(1, 2)
        assert sink_kv is not None
        sink_k, sink_v, added = self._sinks_for(sink_kv, q)
        n_pos, n_sinks = q.shape[2], sink_k.shape[2]
        mask = q.new_zeros(self.n_heads, n_pos, n_sinks + n_pos)
        mask[..., :n_sinks] = added[:, None]
        if self.causal:
            mask[..., n_sinks:] = self.hidden(n_pos, q, -torch.inf)
        k = torch.cat([sink_k.expand(len(q), -1, -1, -1), k], dim=2)
        v = torch.cat([sink_v.expand(len(q), -1, -1, -1), v], dim=2)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    def explicit_attention(
        self,
        q: Float[Tensor, "batch head pos d_head"],
        k: Float[Tensor, "batch head pos d_head"],
        v: Float[Tensor, "batch head pos d_head"],
        sink_kv: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "batch head pos d_head"]:
        # pattern = softmax(q k^T / sqrt(d_head) + hidden), where `hidden` is 0 unless causal.
        n_pos, shape = q.shape[2], q.shape[:2]
        # The lowest finite number, as in Hugging Face: -inf would give inf - inf = nan in hooks.
        hidden = self.hidden(n_pos, q, torch.finfo(q.dtype).min if self.causal else 0.0)
        wide = [one.flatten(0, 1) for one in (q, k, v)]
        scores = torch.baddbmm(hidden, wide[0], wide[1].transpose(1, 2), alpha=self.d_head**-0.5)
        scores = self.hook_attn_scores(scores.unflatten(0, shape))
        if sink_kv is None:
            pattern = self.hook_pattern(scores.softmax(dim=-1)).to(v.dtype)
            return (pattern.flatten(0, 1) @ wide[2]).unflatten(0, shape)
        sink_k, sink_v, added = self._sinks_for(sink_kv, q)
        n_sinks = sink_k.shape[2]
        of_sinks = q @ sink_k.transpose(-1, -2) * self.d_head**-0.5 + added[:, None]
        both = torch.cat([of_sinks.to(scores.dtype), scores], dim=-1).softmax(dim=-1)
        pattern = self.hook_pattern(both[..., n_sinks:]).to(v.dtype)
        from_sinks = self.hook_sink_pattern(both[..., :n_sinks]).to(v.dtype)
        return (pattern.flatten(0, 1) @ wide[2]).unflatten(0, shape) + from_sinks @ sink_v

    def hidden(self, n_pos: int, like: Tensor, lowest: float) -> Float[Tensor, "query key"]:
        """Return what is added to scores: `lowest` for keys that a query does not see, else 0.

        Those are the keys of later positions, and of earlier ones outside the window.
        """
        square = torch.full((n_pos, n_pos), lowest, dtype=like.dtype, device=like.device)
        if not 0 < self.window < n_pos:
            return square.triu(1)
        return square.triu(1) + square.tril(-self.window)

    def _sinks_for(
        self, sink_kv: tuple[Tensor, Tensor], like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys and values [batch head sink d_head] and added scores [head sink]."""
        assert self.sinks is not None
        shared_by = self.n_heads // self.n_key_value_heads
        k, v = (
            one.to(like.dtype).transpose(1, 2).repeat_interleave(shared_by, dim=1)
            for one in sink_kv
        )
        return k, v, self.sinks.scores(self.n_heads).to(like.dtype)

    def after_mixing(
        self,
        y: Float[Tensor, "batch pos head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
        x: Float[Tensor, "batch pos d_model"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Remove each head's own value and apply its gate, each if the architecture says so.

        `v` and the layer's normed input `x` are at the positions of `y`.
        """
        if self.exclusive is not None:
            own = v.repeat_interleave(self.n_heads // self.n_key_value_heads, dim=2)
            y = self.exclusive(y, own)
        return y if self.head_gate is None else y * self.head_gate(x)[..., None]


class Attention(Heads):
    """Attention layer with weights of its own."""

    def __init__(self, cfg: GPTConfig, *, embedding_values: bool = False) -> None:
        super().__init__(cfg)
        self.qkv = Linear(cfg.d_model, sum(self.widths), bias=cfg.biased_qkv)
        self.out = Linear(cfg.n_heads * cfg.d_head, cfg.d_model, bias=cfg.bias)
        self.value_residual = None
        if embedding_values:
            width = min(VALUE_GATE_WIDTH, cfg.d_model)
            self.value_residual = ValueResidual(
                cfg.d_model, cfg.n_key_value_heads, cfg.d_head, width
            )
        self.hook_result = HookPoint()  # [batch pos head d_model], before the bias

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        rotation: tuple[Tensor, Tensor] | None = None,
        x0: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Mix values over the positions up to each position (causal), or over all positions.

        `x0` is the embedding that entered the first layer; value residuals read it.
        """
        whole = self.qkv(x if self.sinks is None else self.sinks.prepend(x))
        q, k, v = whole.split(self.widths, dim=-1)
        k, v = (one.unflatten(-1, (-1, self.d_head)) for one in (k, v))
        n_sinks = whole.shape[1] - x.shape[1]
        sink_kv = self._sink_keys_and_values(k[:, :n_sinks], v[:, :n_sinks])
        q = self.hook_q(q[:, n_sinks:].unflatten(-1, (-1, self.d_head)))
        k = self.hook_k(k[:, n_sinks:])
        v = self.hook_v(self.with_residual(v[:, n_sinks:], x, x0))
        q, k = self.normalise_and_rotate(q, k, rotation)
        z = self.hook_z(self.after_mixing(self.mix(q, k, v, sink_kv), v, x))
        if self.hook_result.hooked:
            return self._sum_of_heads(z)
        return self.out(z.flatten(-2))

    def with_residual(
        self,
        v: Float[Tensor, "batch pos kv_head d_head"],
        x: Float[Tensor, "batch pos d_model"],
        x0: Float[Tensor, "batch pos d_model"] | None,
    ) -> Float[Tensor, "batch pos kv_head d_head"]:
        """Return the values that are mixed: `v`, plus the value residual if the layer has one."""
        if self.value_residual is None:
            return v
        assert x0 is not None
        return v + self.value_residual(x, x0)

    def sink_kv(self) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of the sinks, [1 sink kv_head d_head]; None without sinks."""
        if self.sinks is None:
            return None
        none = self.qkv.weight.new_zeros(1, 0, self.qkv.in_features)
        _, k, v = self.qkv(self.sinks.prepend(none)).split(self.widths, dim=-1)
        return self._sink_keys_and_values(*(one.unflatten(-1, (-1, self.d_head)) for one in (k, v)))

    def _sink_keys_and_values(
        self, k: Float[Tensor, "batch sink kv_head d_head"], v: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the sinks' keys, normalised if the architecture says so, and values."""
        if self.sinks is None:
            return None
        if not self.sinks.learned:
            zero = k.new_zeros(1, 1, *k.shape[2:])
            return zero, zero
        return k if self.k_norm is None else self.k_norm.normalise(k), v

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

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query bias of each head."""
        return self.b_QKV[0]

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Key bias of each query head; shared ones are repeated."""
        return self.b_QKV[1]

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """Value bias of each query head; shared ones are repeated."""
        return self.b_QKV[2]

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.out.bias_or_zeros

    def _per_head(self, rows: Tensor) -> Float[Tensor, "head d_in d_head"]:
        """Split rows [heads * d_head, d_in] into one matrix for each query head."""
        shared_by = self.n_heads * self.d_head // rows.shape[0]
        return repeat(
            rows,
            "(head d_head) d_in -> (head shared) d_in d_head",
            d_head=self.d_head,
            shared=shared_by,
        )
