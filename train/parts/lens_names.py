"""TransformerLens 4's other names for our hook points.

Its bridge calls the same value by where it leaves a submodule (`attn.q.hook_out`) and by its old
name (`attn.hook_q`). Only names under which reading *and replacing* mean the same are listed: its
`attn.q.hook_in` would feed the queries alone, which one fused matrix cannot do.
"""

from train.architecture import GPTConfig


__all__ = ["lens_names"]


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
