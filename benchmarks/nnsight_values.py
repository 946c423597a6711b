"""Compute the same things with nnsight and with openbook, and compare the values.

    python benchmarks/nnsight_values.py

nnsight is not a dependency of openbook: install it beside openbook first (`pip install nnsight`).
It runs the released planted run as `transformers` computes it. Each row is one line of the page
`docs/how-to/come-from-nnsight.md`. Exit 1 when a difference exceeds 1e-5 or is no number.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import machine
import torch
from torch import Tensor

from interp import behaviours, models
from train import convert, released


CLOSE = 1e-5


def main() -> int:
    """Print every difference; 1 when one is too large."""
    from nnsight import NNsight  # pyright: ignore[reportMissingImports]

    run = released.open("planted")
    model = models.load(run)
    ioi = behaviours.load("ioi", run, n_prompts=16)
    theirs = NNsight(convert.to_huggingface(model))
    print(machine.described("torch", "transformers", "nnsight"))
    apart = 0
    for name, (ours, compute) in pairs(model, ioi).items():
        difference = (ours() - compute(theirs)).abs().max().item()
        apart += not difference <= CLOSE  # NaN is apart, too
        print(f"{name:<44} largest difference {difference:.1e}")
    return int(apart > 0)


def pairs(model: Any, ioi: Any) -> dict[str, tuple[Callable[[], Tensor], Callable[[Any], Tensor]]]:
    """Return, by name, what openbook and what nnsight computes; nnsight's takes its model."""
    clean, corrupt = ioi.clean, ioi.corrupt
    return {
        "logits": (lambda: model(clean), partial(logits_of, tokens=clean)),
        "residual stream behind block 0": (
            lambda: model.run_with_cache(clean)[1]["resid_post", 0],
            partial(stream_of, tokens=clean),
        ),
        "output of the MLP of block 1": (
            lambda: model.run_with_cache(clean)[1]["mlp_out", 1],
            partial(mlp_of, tokens=clean),
        ),
        "logits with the MLP of block 0 set to zero": (
            lambda: model.run_with_hooks(clean, fwd_hooks=[("blocks.0.hook_mlp_out", zeroed)]),
            partial(without_mlp, tokens=clean),
        ),
        "logits with head 1 of block 0 patched": (
            lambda: patched_logits(model, clean, corrupt),
            partial(patched, clean=clean, corrupt=corrupt),
        ),
        "gradient of a logit at block 0": (
            lambda: gradient(model, clean),
            partial(gradient_of, tokens=clean),
        ),
    }


# --- openbook -------------------------------------------------------------------------------------


def zeroed(value: Tensor, hook: Any) -> Tensor:
    """Replace a value by zeros."""
    return torch.zeros_like(value)


def patched_logits(model: Any, clean: Tensor, corrupt: Tensor) -> Tensor:
    """Return the logits of the corrupt prompts with head 1 of block 0 from the clean ones."""
    _, cache = model.run_with_cache(clean)

    def patch(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 1] = cache[hook.name][:, :, 1]
        return z

    return model.run_with_hooks(corrupt, fwd_hooks=[("blocks.0.attn.hook_z", patch)])


def gradient(model: Any, tokens: Tensor) -> Tensor:
    """Return the gradient of a logit with respect to the stream behind block 0."""
    found: list[Tensor] = []
    point = "blocks.0.hook_resid_post"
    with model.hooks(bwd_hooks=[(point, lambda value, hook: found.append(value.detach()))]):
        model(tokens)[:, -1, 5].sum().backward()
    return found[0]


# --- nnsight --------------------------------------------------------------------------------------


def logits_of(theirs: Any, tokens: Tensor) -> Tensor:
    """Return the logits."""
    with theirs.trace(tokens):
        logits = theirs.lm_head.output.save()
    return logits  # noqa: RET504 - the name is bound when the block ends


def stream_of(theirs: Any, tokens: Tensor) -> Tensor:
    """Return the residual stream behind block 0."""
    with theirs.trace(tokens):
        hidden = theirs.transformer.h[0].output.save()
    return hidden if isinstance(hidden, Tensor) else hidden[0]


def mlp_of(theirs: Any, tokens: Tensor) -> Tensor:
    """Return the output of the MLP of block 1."""
    with theirs.trace(tokens):
        hidden = theirs.transformer.h[1].mlp.output.save()
    return hidden  # noqa: RET504 - as above


def without_mlp(theirs: Any, tokens: Tensor) -> Tensor:
    """Return the logits with the MLP of block 0 set to zero."""
    with theirs.trace(tokens):
        theirs.transformer.h[0].mlp.output[:] = 0
        logits = theirs.lm_head.output.save()
    return logits  # noqa: RET504 - the name is bound when the block ends


def patched(theirs: Any, clean: Tensor, corrupt: Tensor) -> Tensor:
    """Return the logits of the corrupt prompts with head 1 of block 0 from the clean ones.

    The input of `c_proj` holds the heads side by side, 32 numbers each.
    """
    with theirs.trace(clean):
        z = theirs.transformer.h[0].attn.c_proj.input.save()
    with theirs.trace(corrupt):
        theirs.transformer.h[0].attn.c_proj.input[:, :, 32:64] = z[:, :, 32:64]
        logits = theirs.lm_head.output.save()
    return logits  # noqa: RET504 - the name is bound when the block ends


def gradient_of(theirs: Any, tokens: Tensor) -> Tensor:
    """Return the gradient of a logit with respect to the stream behind block 0."""
    with theirs.trace(tokens):
        hidden = theirs.transformer.h[0].output
        hidden = hidden if isinstance(hidden, Tensor) else hidden[0]
        hidden.requires_grad_(True)
        total = theirs.lm_head.output[:, -1, 5].sum()
        with total.backward():
            gradient: Any = hidden.grad  # a proxy of nnsight here
            found = gradient.save()
    return found


if __name__ == "__main__":
    sys.exit(main())
