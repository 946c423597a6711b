"""The run that is not patched, and what of it patched runs share.

A patch at layer l and position p changes nothing below l, and in a causal model nothing before p.
So the base run is made once, and from it every patched run takes the residual stream it starts
from, and the keys and values of all positions that the patch cannot reach.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.components import SITES, Component
from train import numerics
from train.model import GPT, Block, HookPoint


__all__ = [
    "BaseRun",
    "activations",
    "fast_fp32",
    "fast_product",
    "hooks_needed",
    "make",
    "product_for",
]

# What the start of a patch at each site is computed from, besides the patched value itself.
ATTENTION = ("head", "q", "k", "v", "pattern", "attn")
MLP = ("neuron", "mlp")
BLOCK = 1 << 24  # numbers: more than the 32 MB above which the C library maps pages for each


@dataclass(frozen=True, eq=False)
class BaseRun:
    """One forward pass over the prompts, kept as far as patches need it.

    Attributes:
        model: Whose run it is.
        cache: Activations by hook name.
        final: Residual stream after the last layer, at every position.
        shared: Positions from 0 at which source and base are known to be equal.
    """

    model: GPT
    cache: Mapping[str, Tensor]
    final: Float[Tensor, "prompt pos d_model"]
    shared: int

    @property
    def n_prompts(self) -> int:
        """How many prompts."""
        return self.final.shape[0]

    @property
    def n_pos(self) -> int:
        """Their length."""
        return self.final.shape[1]

    @property
    def n_layers(self) -> int:
        """How many layers."""
        return self.model.cfg.n_layers

    def block(self, layer: int) -> Block:
        """One layer of the model."""
        found = self.model.blocks[layer]
        assert isinstance(found, Block)
        return found

    def at(self, layer: int, site: str) -> Tensor:
        """The activation at a site of `SITES`."""
        return self.cache[f"blocks.{layer}.{SITES[site]}"]

    def keys(self, layer: int) -> Float[Tensor, "prompt pos head d_head"]:
        """Keys as attention uses them, rotated where the model rotates."""
        return self.cache[_keys(self.model, layer)]


def make(
    model: GPT,
    tokens: Int[Tensor, "prompt pos"],
    patches: Sequence[Sequence[Component]],
    *,
    shared: int = 0,
    also_kept: Sequence[str] = (),
    added: Float[Tensor, "prompt pos d_model"] | None = None,
) -> BaseRun:
    """Run the model once and keep what `patches` need. The vocabulary is not touched."""
    names = sorted({*hooks_needed(model, patches), *also_kept})
    found = activations(model, tokens, names, added=added)
    return BaseRun(model, found, found.pop("final"), shared)


def activations(
    model: GPT,
    tokens: Int[Tensor, "prompt pos"],
    names: Sequence[str],
    *,
    added: Float[Tensor, "prompt pos d_model"] | None = None,
) -> dict[str, Tensor]:
    """Activations by name, and the last residual stream as `final`; no logits are computed.

    `added` is what is added to the embeddings: the noise of causal tracing.
    """
    found: dict[str, Tensor] = {}
    shelf = _Shelf()

    def keep(value: Tensor, point: HookPoint) -> None:
        found[point.name] = shelf.put(value)

    tokens = tokens.to(model.device)
    with model.hooks([(name, keep) for name in names]):
        resid, rotation = model.embed_tokens(tokens), model.rotation(tokens.shape[1])
        resid = resid if added is None else resid + added
        for block in model.blocks:
            resid = block(resid, rotation)
    return {**found, "final": resid}


class _Shelf:
    """Copies of what is kept, one behind the other in large blocks.

    Kept where it was computed, every value lies between temporaries, and the holes that those leave
    stay with the process: at 32 prompts of 64 tokens 690 MB instead of 526. Keys and values are
    also slices of a product that holds the queries as well.
    """

    def __init__(self) -> None:
        self.free: Tensor | None = None

    def put(self, value: Tensor) -> Tensor:
        n = value.numel()
        if self.free is None or self.free.dtype != value.dtype or len(self.free) < n:
            self.free = value.detach().new_empty(max(n, BLOCK))
        place, self.free = self.free[:n], self.free[n:]
        return place.view(value.shape).copy_(value.detach())


def hooks_needed(model: GPT, patches: Sequence[Sequence[Component]]) -> list[str]:
    """Names of what a base run has to keep for these patches."""
    places = {Component(p.site, p.layer) for patch in patches for p in patch}
    lowest = min((place.layer for place in places), default=0)
    names = {place.hook for place in places}
    for layer in range(lowest, model.cfg.n_layers):
        names |= {_keys(model, layer), f"blocks.{layer}.{SITES['v']}"}
    for place in places:
        names |= {f"blocks.{place.layer}.{SITES[site]}" for site in _beside(model, place.site)}
    return sorted(names)


def _beside(model: GPT, site: str) -> tuple[str, ...]:
    """Sites of the same layer that the start of a patch at `site` is computed from."""
    pre_norm = model.cfg.norm_placement == "pre"
    if site in ATTENTION:
        wired = ("q",) if site in ("k", "v", "pattern") else ()
        return (*wired, "resid_mid") if pre_norm else (*wired, "resid_pre", "attn")
    if site in MLP:
        return ("resid_post",) if pre_norm else ("resid_mid", "mlp")
    return ()


def _keys(model: GPT, layer: int) -> str:
    name = "hook_rot_k" if model.cfg.position == "rope" else "hook_k"
    return f"blocks.{layer}.attn.{name}"


@cache
def fast_product() -> str:
    """The fastest true fp32 of this processor, measured once a process in a quarter of a second."""
    return numerics.choose(device="cpu", precision="fp32").matmul


def product_for(device: torch.device) -> str:
    """The precision of products that `fast_fp32` uses in this process, as torch names it."""
    chosen = torch.get_float32_matmul_precision()
    return fast_product() if device.type == "cpu" and chosen == "highest" else chosen


@contextmanager
def fast_fp32(device: torch.device, product: str | None = None) -> Iterator[None]:
    """Multiply in true fp32 by the faster of torch's two CPU kernels inside the block.

    On an AMD Zen 5 the second is 2.2 times faster at an error of 3.7e-7 instead of 2.5e-7. Who has
    chosen a precision other than torch's default keeps it.

    Args:
        product: The precision to use instead, from an earlier `product_for`: which kernel is faster
            is measured in every process, and the two round differently.
    """
    before = torch.get_float32_matmul_precision()
    product = product or product_for(device)
    try:
        torch.set_float32_matmul_precision(product)
        yield
    finally:
        try:
            torch.set_float32_matmul_precision(before)
        except KeyboardInterrupt:  # that comes as late as this must not leave it changed either
            torch.set_float32_matmul_precision(before)
            raise
