"""The names of TransformerLens for weights and hook points of the decoder.

`StackedWeights` gives the weights stacked over layers. Every property stacks them anew, so fetch it
once before a loop. Missing biases are zeros. Matrices multiply from the right:
`residual @ W_Q[layer, head]` is a query.

`lens_names` gives aliases of our hook points. TransformerLens 4's bridge names the same value by
the submodule that outputs it (`attn.q.hook_out`) and by its older name (`attn.hook_q`). Only names
for which both reading *and replacing* mean the same are listed. `attn.q.hook_in` is not, because it
would change the input of the queries alone, which one fused `qkv` matrix cannot do.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.model.architecture import GPTConfig


__all__ = ["StackedWeights", "lens_names", "loop_names"]


def lens_names(cfg: GPTConfig) -> dict[str, str]:
    """Return a mapping from TransformerLens' names of hook points to ours."""
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
        in_block["hook_mlp_in"] = "ln2.hook_in"
        if not cfg.gated_mlp:
            in_block["mlp.in.hook_in"] = "ln2.hook_out"
    if not cfg.gated_mlp:
        del in_block["mlp.gate.hook_out"]
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}."
        names |= {block + theirs: block + ours for theirs, ours in in_block.items()}
    return names


def loop_names(cfg: GPTConfig, own: Iterable[str]) -> dict[str, str]:
    """Return a mapping from names by layer and pass, as `layers.2.pass.1.hook_resid_pre`, to ours.

    Block i of the forward pass is layer `layer_of(i)` in pass `pass_of(i)` of a loop.
    """
    names = {}
    for name in own:
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            layer, number = cfg.layer_of(int(block)), cfg.pass_of(int(block))
            names[f"layers.{layer}.pass.{number}.{rest}"] = name
    return names


class StackedWeights(nn.Module):
    """Weights of a decoder under TransformerLens' names; gradients flow through them."""

    cfg: GPTConfig
    blocks: Sequence[Any]  # of `Block`, whose module imports this one

    def _stack(self, of: Callable[[Any], Tensor]) -> Tensor:
        return torch.stack([of(block) for block in self.blocks])

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights."""
        return self._stack(lambda block: block.attn.W_Q)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights; shared ones are repeated, so the head axis is that of the queries."""
        return self._stack(lambda block: block.attn.W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights; shared ones are repeated."""
        return self._stack(lambda block: block.attn.W_V)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Attention output weights."""
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
        return self._stack(lambda block: block.attn.b_O)

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Input weights of the MLP; for swiglu those of the linear branch."""
        return self._stack(lambda block: block.mlp.W_in)

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:
        """Gate weights of a swiglu MLP; None for other MLPs."""
        if not self.cfg.gated_mlp:
            return None
        return self._stack(lambda block: block.mlp.W_gate)

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """Output weights of the MLP."""
        return self._stack(lambda block: block.mlp.W_out)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """Input bias of the MLP."""
        return self._stack(lambda block: block.mlp.b_in)

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Output bias of the MLP."""
        return self._stack(lambda block: block.mlp.b_out)
