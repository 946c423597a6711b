"""A checkpoint as nanoGPT's `train.py` writes it: random weights under nanoGPT's names."""

from pathlib import Path

import torch


__all__ = ["write_checkpoint"]

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 40}


def write_checkpoint(path: Path) -> None:
    """Write `ckpt.pt` with two layers of eight dimensions, at step 400."""
    draw, width = torch.Generator().manual_seed(0), SIZES["n_embd"]
    shapes = {"wte.weight": (SIZES["vocab_size"], width), "wpe.weight": (16, width)}
    for layer in range(SIZES["n_layer"]):
        for name, shape in {
            "ln_1": (width,), "ln_2": (width,), "attn.c_attn": (3 * width, width),
            "attn.c_proj": (width, width), "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }.items():  # fmt: skip
            shapes[f"h.{layer}.{name}.weight"] = shape
            shapes[f"h.{layer}.{name}.bias"] = shape[:1]
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    weights = {
        f"transformer.{name}": torch.randn(shape, generator=draw) for name, shape in shapes.items()
    }
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    saved = {
        "model": weights,
        "model_args": {**SIZES, "bias": True, "dropout": 0.0},
        "iter_num": 400,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "shakespeare_char"},
    }
    torch.save(saved, path)
