"""TransformerLens' names for the weights, stacked over layers.

Every property builds its answer anew, so fetch it once before a loop. Missing biases are zeros.
Matrices map left to right: `residual @ W_Q[layer, head]` is a query.

TransformerLens 4's other names for our hook points.

Its bridge calls the same value by where it leaves a submodule (`attn.q.hook_out`) and by its old
name (`attn.hook_q`). Only names under which reading *and replacing* mean the same are listed: its
`attn.q.hook_in` would feed the queries alone, which one fused matrix cannot do.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.model.architecture import GPTConfig


__all__ = ["StackedWeights", "lens_names"]


def lens_names(cfg: GPTConfig) -> dict[str, str]:
    """Their name -> ours."""
    last = f"blocks.{cfg.n_layers - 1}.hook_resid_post"
    names = {
        "embed.hook_out": "hook_embed",
        "pos_embed.hook_out": "hook_pos_embed",
        "unembed.hook_in": "ln_final.hook_out" if cfg.norm_placement == "pre" else last,
        "unembed.hook_out": "hook_unembed",
    }
    in_block = {
        "hook_in": "hook_resid_pre",
        "attn.q.hook_out": "attn.hook_q",
        "attn.k.hook_out": "attn.hook_k",
        "attn.v.hook_out": "attn.hook_v",
        "attn.o.hook_in": "attn.hook_z",
        "attn.o.hook_out": "hook_attn_out",
        "attn.hook_out": "hook_attn_out",
        "attn.hook_hidden_states": "hook_attn_out",
        "mlp.gate.hook_out": "mlp.hook_pre",
        "mlp.in.hook_out": "mlp.hook_pre_linear" if cfg.gated_mlp else "mlp.hook_pre",
        "mlp.out.hook_in": "mlp.hook_post",
        "mlp.out.hook_out": "hook_mlp_out",
        "mlp.hook_out": "hook_mlp_out",
        "hook_out": "hook_resid_post",
    }
    if cfg.norm_placement == "pre":
        in_block |= {"attn.hook_in": "ln1.hook_out", "mlp.hook_in": "ln2.hook_out"}
        if not cfg.gated_mlp:
            in_block["mlp.in.hook_in"] = "ln2.hook_out"
    if not cfg.gated_mlp:
        del in_block["mlp.gate.hook_out"]
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}."
        names |= {block + theirs: block + ours for theirs, ours in in_block.items()}
    return names


class StackedWeights(nn.Module):
    """Read-only views of a decoder's weights; gradients flow through them."""

    cfg: GPTConfig
    blocks: nn.ModuleList

    def _stack(self, of: Callable) -> Tensor:
        return torch.stack([of(block) for block in self.blocks])

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Queries."""
        return self._stack(lambda block: block.attn.W_Q)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Keys; shared ones are repeated, so the head axis is that of the queries."""
        return self._stack(lambda block: block.attn.W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Values; shared ones are repeated."""
        return self._stack(lambda block: block.attn.W_V)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Attention output."""
        return self._stack(lambda block: block.attn.W_O)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query bias."""
        return self._stack(lambda block: block.attn.b_QKV[0])

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key bias."""
        return self._stack(lambda block: block.attn.b_QKV[1])

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value bias."""
        return self._stack(lambda block: block.attn.b_QKV[2])

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Attention output bias."""
        return self._stack(lambda block: _bias(block.attn.out))

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Into the MLP; the linear branch under swiglu."""
        return self._stack(lambda block: block.mlp.up.weight.T)

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:
        """Gate of a swiglu MLP; None for the others."""
        if not self.cfg.gated_mlp:
            return None
        return self._stack(lambda block: block.mlp.gate.weight.T)

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """Out of the MLP."""
        return self._stack(lambda block: block.mlp.down.weight.T)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """Bias into the MLP."""
        return self._stack(lambda block: _bias(block.mlp.up))

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Bias out of the MLP."""
        return self._stack(lambda block: _bias(block.mlp.down))


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
