"""Base run: the unpatched forward pass, whose activations all patched runs reuse.

Invariant: a patch at layer l and position p changes no activation below layer l and, in a causal
model, none at a position before p. The base run is therefore computed once. From it every patched
run takes the residual stream from which it starts, and the keys and values of all positions that
the patch cannot reach.
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
from train.model import GPT, Block, HookPoint, key_hook
from train.short_repr import short_repr


__all__ = [
    "BaseRun",
    "activations",
    "fast_fp32",
    "fast_product",
    "hooks_needed",
    "make",
    "product_for",
]

# Sites inside attention and inside the MLP: the first residual stream that a patch there changes is
# that after attention, or that after the layer.
ATTENTION = ("head", "q", "k", "v", "pattern", "attn")
MLP = ("neuron", "mlp")
GATES = "attn.head_gate.hook_gate"
# Numbers per block of `_Shelf`. In fp32 these are 64 MB, above the 32 MB from which on the C
# library maps every allocation into pages of its own.
BLOCK = 1 << 24


@dataclass(frozen=True, eq=False)
class BaseRun:
    """Activations of one unpatched forward pass, as far as patches need them.

    Attributes:
        model: The model that was run.
        cache: Activations by hook name.
        final: Residual stream after the last layer, at every position.
        shared: Number of leading positions at which source and base run are known to be equal.
        embedding: The stream that entered layer 0, which later layers read again if the
            architecture has value residuals or mixes, else None; no patch changes it.
    """

    model: GPT
    cache: Mapping[str, Tensor]
    final: Float[Tensor, "prompt pos d_model"]
    shared: int
    embedding: Float[Tensor, "prompt pos d_model"] | None

    __repr__ = short_repr

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.final.shape[0]

    @property
    def n_pos(self) -> int:
        """Length of the prompts in tokens."""
        return self.final.shape[1]

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.model.cfg.n_layers

    def block(self, layer: int) -> Block:
        """Return one layer of the model."""
        found = self.model.blocks[layer]
        assert isinstance(found, Block)
        return found

    def at(self, layer: int, site: str) -> Tensor:
        """Return the activation at a site of `SITES`."""
        return self.cache[f"blocks.{layer}.{SITES[site]}"]

    def keys(self, layer: int) -> Float[Tensor, "prompt pos head d_head"]:
        """Return the keys as attention uses them, that is, rotated if the model uses RoPE."""
        return self.cache[_keys(self.model, layer)]

    def gates(self, layer: int) -> Float[Tensor, "prompt pos head"] | None:
        """Return the gates of a layer's heads; None if it has none."""
        return self.cache.get(f"blocks.{layer}.{GATES}")

    def embedding_at(self, positions: Sequence[int]) -> Float[Tensor, "prompt at d_model"]:
        """Return the stream that entered layer 0 at some positions."""
        assert self.embedding is not None
        return self.embedding[:, list(positions)]

    def enter(
        self,
        layer: int,
        resid: Float[Tensor, "*batch prompt at d_model"],
        outputs: Mapping[int, Tensor],
        positions: Sequence[int],
    ) -> Float[Tensor, "*batch prompt at d_model"]:
        """Return the stream that a layer reads, given the output of the layer before.

        The two differ in architectures with U-Net skips or mixes. `outputs` are the outputs of
        earlier layers in the same patched runs; missing ones are those of the base run.
        """
        if self.block(layer).entry is None:
            return resid
        source, at = self.model.cfg.skip_source(layer), list(positions)
        if source is not None and source not in outputs:
            outputs = {source: self.at(source, "resid_post")[:, at]}
        x0 = resid if self.embedding is None else self.embedding[:, at]
        return self.model.enter(layer, resid, x0, outputs)


def make(
    model: GPT,
    tokens: Int[Tensor, "prompt pos"],
    patches: Sequence[Sequence[Component]],
    *,
    shared: int = 0,
    also_kept: Sequence[str] = (),
    added: Float[Tensor, "prompt pos d_model"] | None = None,
) -> BaseRun:
    """Run the model once, without unembedding, and keep the activations that `patches` need."""
    names = sorted({*hooks_needed(model, patches), *also_kept})
    found = activations(model, tokens, names, added=added)
    return BaseRun(model, found, found.pop("final"), shared, found.pop("embedding", None))


def activations(
    model: GPT,
    tokens: Int[Tensor, "prompt pos"],
    names: Sequence[str],
    *,
    added: Float[Tensor, "prompt pos d_model"] | None = None,
) -> dict[str, Tensor]:
    """Return activations by hook name, and the last residual stream as `final`.

    If layers read the embedding again, it is in the result as `embedding`. No logits are computed.
    `added` is added to the embeddings; causal tracing passes its noise.

    Examples:
        >>> found = engine.activations(model, ioi.clean, ["blocks.0.attn.hook_z"])
        >>> tuple(found["blocks.0.attn.hook_z"].shape), tuple(found["final"].shape)
        ((64, 15, 4, 32), (64, 15, 128))
    """
    found: dict[str, Tensor] = {}
    shelf = _Shelf()

    def keep(value: Tensor, point: HookPoint) -> None:
        found[point.name] = shelf.put(value)

    tokens = tokens.to(model.device)
    with model.hooks([(name, keep) for name in names]):
        embedding = model.embed_tokens(tokens, added=added)
        final = model.run_blocks(embedding)
    if model.cfg.reads_embedding:
        found["embedding"] = embedding
    return {**found, "final": final}


class _Shelf:
    """Storage that copies kept activations one after another into large blocks.

    Activations kept where they were computed lie between temporary tensors, and the gaps that these
    leave are not returned by the process: 690 MB instead of 526 MB for 32 prompts of 64 tokens.
    Keys and values are also slices of a product that would keep the queries in memory as well.
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
    """Return the hook names that a base run must keep for these patches.

    These are, from the lowest patched layer on, the keys and values of every layer, which patched
    runs attend to; the patched components themselves; and the activations from which the start of
    each patched run is computed.
    """
    places = {Component(p.site, p.layer) for patch in patches for p in patch}
    lowest = min((place.layer for place in places), default=0)
    names = {place.hook for place in places}
    for layer in range(lowest, model.cfg.n_layers):
        names |= {_keys(model, layer), f"blocks.{layer}.{SITES['v']}"}
    # Outputs that a U-Net adds again: patched runs that start later take them from the base run.
    sources = {model.cfg.skip_source(layer) for layer in range(lowest, model.cfg.n_layers)}
    names |= {f"blocks.{layer}.hook_resid_post" for layer in sources if layer is not None}
    for place in places:
        names |= {f"blocks.{place.layer}.{SITES[site]}" for site in _beside(model, place.site)}
        if place.site in ("q", "k", "v", "pattern") and model.cfg.head_gate:
            names.add(f"blocks.{place.layer}.{GATES}")
    return sorted(names)


def _beside(model: GPT, site: str) -> tuple[str, ...]:
    """Return further sites of the same layer from which the start of a patch is computed."""
    pre_norm = model.cfg.norm_placement == "pre"
    if site in ATTENTION:
        wired = ("q",) if site in ("k", "v", "pattern") else ()
        # With a parallel residual nothing but resid_post reads what attention writes.
        if model.cfg.parallel_residual:
            return (*wired, "resid_post")
        return (*wired, "resid_mid") if pre_norm else (*wired, "resid_pre", "attn")
    if site in MLP:
        return ("resid_post",) if pre_norm else ("resid_mid", "mlp")
    return ()


def _keys(model: GPT, layer: int) -> str:
    return f"blocks.{layer}.attn.{key_hook(model.cfg)}"


@cache
def fast_product() -> str:
    """Return the faster full-precision fp32 matrix product of this CPU, as torch names it.

    Measured once per process, in a quarter of a second.
    """
    return numerics.choose(device="cpu", precision="fp32").matmul


def product_for(device: torch.device) -> str:
    """Return the matmul precision that `fast_fp32` uses in this process, as torch names it."""
    chosen = torch.get_float32_matmul_precision()
    return fast_product() if device.type == "cpu" and chosen == "highest" else chosen


@contextmanager
def fast_fp32(device: torch.device, product: str | None = None) -> Iterator[None]:
    """Use the faster of torch's two full-precision fp32 matmul kernels inside a `with` block.

    On an AMD Zen 5 the second kernel is 2.2 times faster, with an error of 3.7e-7 instead of
    2.5e-7. A precision that the user set to something other than torch's default is kept.

    Args:
        device: Device of the computation; a choice is made on a CPU only.
        product: Precision to use instead of the measured one, from an earlier `product_for`. The
            choice is measured in every process and the two kernels round differently, so results
            that must agree to the last bit need the same precision.
    """
    before = torch.get_float32_matmul_precision()
    product = product or product_for(device)
    try:
        torch.set_float32_matmul_precision(product)
        yield
    finally:
        try:
            torch.set_float32_matmul_precision(before)
        except KeyboardInterrupt:  # Ctrl-C during the line above: restore all the same
            torch.set_float32_matmul_precision(before)
            raise
