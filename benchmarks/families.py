"""Models of published families with random weights: equal to transformers and TransformerLens.

    python benchmarks/families.py

Pythia (GPT-NeoX), Llama 3, Mistral, Qwen2 and Qwen3, small and with random weights. For each are
printed: the largest difference of the logits from those of transformers, opened from a folder that
it saved; of the logits from those of TransformerLens; of every activation that TransformerLens
names as we do; of patched scores from whole passes in fp64, and the ratio of their times (CPU time
in fp32, one thread). Then what each tool does on them, the second table of docs/architectures.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import architectures
import machine
import torch

from interp import models
from train import convert
from train.model import GPTConfig, preset


FAMILIES = ("pythia", "llama3", "mistral", "qwen2", "qwen3")
TOLERANCE = 1e-5
# Sizes of the small models, on which two query heads share a key. Of Llama 3's rotations some are
# fast, some slow and some between; the window is shorter than the prompts.
SIZES = {
    "n_layers": 3,
    "n_heads": 4,
    "n_key_value_heads": 2,
    "d_model": 64,
    "d_head": 16,
    "d_mlp": 96,
    "n_ctx": 64,
    "d_vocab": 97,
    "init_std": 0.1,
}
OWN_SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "pythia": {"n_key_value_heads": 4, "rotary_channels": 4},
        "llama3": {"rope_theta": 500.0, "rope_factor": 4.0, "rope_original_ctx": 32},
        "mistral": {"window": 6},
        "qwen2": {},
        "qwen3": {"d_head": 24},
    }
)


@dataclass(frozen=True)
class Differences:
    """Largest absolute differences between our model and the same one elsewhere, in fp32.

    Attributes:
        transformers: Of the logits, from a folder that transformers saved.
        lens: Of the logits from those of TransformerLens.
        activations: Of the activations that both name alike.
        names: Those names.
    """

    transformers: float
    lens: float
    activations: float
    names: tuple[str, ...]


def small(name: str) -> GPTConfig:
    """Return a small architecture of a family."""
    return replace(preset(name), **{**SIZES, **OWN_SIZES[name]})


@torch.inference_mode()
def differences(cfg: GPTConfig, folder: Path) -> Differences:
    """Compare a model with random weights with transformers and TransformerLens."""
    twin = convert.to_huggingface(architectures.random_weights(cfg))
    twin.save_pretrained(folder)
    model = convert.import_huggingface(folder).model
    tokens = architectures.prompts_for(model).clean
    logits, ours = model.run_with_cache(tokens, names_filter=lambda _: True)
    bridge = models.transformer_lens(model)
    bridge.cfg.use_attn_result = True
    their_logits, theirs = bridge.run_with_cache(tokens)
    names = tuple(name for name in theirs.keys() if name in ours)  # noqa: SIM118
    return Differences(
        transformers=_largest(logits, twin(tokens).logits),
        lens=_largest(logits, their_logits),
        activations=max(_largest(ours[name], _in_our_order(name, theirs[name])) for name in names),
        names=names,
    )


def _in_our_order(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return a value of TransformerLens with positions before heads, as its other values have."""
    return value.transpose(1, 2) if ".q_norm." in name or ".k_norm." in name else value


def _largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    # Hidden scores are the lowest number, and -inf in some classes of TransformerLens.
    hidden = (ours < -1e30) & (theirs < -1e30)
    return float((ours - theirs).masked_fill(hidden, 0.0).abs().max())


def main() -> int:
    """Print the tables; 1 if a difference exceeds its tolerance."""
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    print(f"{machine.described('torch', 'transformers', 'transformer-lens')}, 1 thread\n")
    failed = 0
    print("largest differences: logits from transformers, from TransformerLens, activations (n);")
    print("patched scores from whole passes in fp64, and how many times as fast the engine is")
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found = differences(small(name), Path(folder))
        worst, ratio = architectures.compared(small(name))
        largest = max(found.transformers, found.lens, found.activations)
        failed += largest > TOLERANCE or worst > architectures.TOLERANCE
        print(
            f"  {name:<8} {found.transformers:.1e}  {found.lens:.1e}  {found.activations:.1e} "
            f"({len(found.names)})  {worst:.1e}  {ratio:.1f}"
        )
    support = {name: architectures.supported(small(name)) for name in FAMILIES}
    print(f"\n{architectures.as_table(support)}")
    for name, tools in support.items():
        for tool, one in tools.items():
            if not one.works:
                print(f"{name}, {tool}: {one.says}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
