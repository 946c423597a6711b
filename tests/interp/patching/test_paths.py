"""Path patching equals its two passes by hand, with MLPs frozen and recomputed."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from interp import patching
from tests.worlds.behaviours import said_by
from tests.worlds.models import shaken
from train.model import GPT, GPTConfig


GPT2 = GPTConfig(n_layers=3, n_heads=2, d_model=16, n_ctx=8, d_vocab=23, init_std=0.3)
LAYOUTS = {
    "gpt2": GPT2,
    "pythia": replace(
        GPT2, position="rope", rotary_channels=4, mlp="gelu", tie=False, parallel_residual=True
    ),
    "normalised queries and keys in a window": replace(
        GPT2, position="rope", norm="rmsnorm", mlp="swiglu", bias=False, qkv_bias=True, window=3,
        qk_norm=True,
    ),
}  # fmt: skip


def recorded(
    model: GPT, tokens: torch.Tensor, cache, source, sender: tuple[int, int], *, mlps: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The first pass: the sender's output is the source's, and later heads are frozen."""
    layer, head = sender

    def put(value, point):
        value = value.clone()
        value[:, :, head] = source[point.name][:, :, head]
        return value

    hooks = [(f"blocks.{layer}.attn.hook_z", put)]
    frozen = [f"blocks.{later}.attn.hook_z" for later in range(layer + 1, model.cfg.n_layers)]
    if not mlps:
        frozen += [f"blocks.{one}.hook_mlp_out" for one in range(model.cfg.n_layers)]
    hooks += [(name, lambda value, point: cache[point.name]) for name in frozen]
    seen = {}
    names = [f"blocks.2.attn.hook_{part}" for part in "qkv"]
    hooks += [(name, lambda value, point: seen.update({point.name: value})) for name in names]
    return model.run_with_hooks(tokens, fwd_hooks=hooks), seen


@torch.no_grad()
@pytest.mark.parametrize("to", ["logits", "L2H1.q", "L2H0.k", "L2H1.v"])
@pytest.mark.parametrize("mlps", ["frozen", "recomputed"])
@pytest.mark.parametrize("cfg", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_paths_are_two_passes_by_hand(cfg, mlps, to):
    model, draw = shaken(cfg, 0.3), torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(cfg.d_vocab, (4, 6), generator=draw) for _ in range(2))
    behaviour = said_by(model, clean, corrupt)
    found = patching.senders(model, behaviour, to, mlps=mlps)
    _, source = model.run_with_cache(clean)
    _, cache = model.run_with_cache(corrupt)
    moved = 0.0
    for layer, head in product(range(3 if to == "logits" else 2), range(2)):
        logits, seen = recorded(
            model, corrupt, cache, source, (layer, head), mlps=mlps == "recomputed"
        )
        if to != "logits":
            name, at = f"blocks.2.attn.hook_{to[-1]}", int(to[3])

            def put(value, point, *, name=name, at=at, seen=seen):
                value = value.clone()
                value[:, :, at] = seen[name][:, :, at]
                return value

            logits = model.run_with_hooks(corrupt, fwd_hooks=[(name, put)])
        score = behaviour.score(logits).mean()
        ours = found.corrupt + found.values[layer, head] * (found.clean - found.corrupt)
        torch.testing.assert_close(ours, score, rtol=0, atol=1e-5)
        moved = max(moved, float((score - found.corrupt).abs()))
    assert moved > 1e-3
