"""Recorder of projected gradient factors during one forward and one backward pass.

The input of every selected matrix is projected as it passes by. The gradient of its output is
projected when it comes back, and at once multiplied with that input and summed over positions.
Neither activations nor output gradients are kept longer than that. The output of the lowest matrix
becomes the root of the graph, so nothing below it is recorded.

Matrices are observed at hook points, where other hooks see the same values. The fused `qkv` is the
exception: its output is observed whole, before it is split.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from data_attribution.gradients import projection
from data_attribution.gradients.projection import Projection
from data_attribution.gradients.weight_selection import Selection, Site
from train.model import GPT, GPTConfig


__all__ = ["Tape"]


class Tape:
    """Collector of projected gradients, one batch at a time.

    Args:
        selection: The selected sites.
        made: Projection of each site, on the model's device.
        rank: Rank of the projections.
    """

    def __init__(
        self, cfg: GPTConfig, selection: Selection, made: Mapping[str, Projection], rank: int
    ) -> None:
        self.blocks: list[tuple[str, int, int]] = []
        self._inputs: dict[tuple[str, int], Tensor] = {}
        self._found: dict[str, Tensor] = {}
        self._leaves: list[Tensor] = []
        self._tokens = torch.empty(0, dtype=torch.long)
        self._reading: dict[str, list[_Probe]] = {}
        self._writing: dict[str, list[_Probe]] = {}
        stop = 0
        for site in selection.sites:
            height, width = projection.shape(site, rank)
            start, stop = stop, stop + height * width
            self.blocks.append((site.name, start, stop))
            # A looped layer uses its matrices in several blocks; their gradients add up.
            for block in _blocks_using(cfg, site):
                probe = _Probe(site, made[site.name], block)
                inside, outside = _wires(cfg, site, block)
                self._reading.setdefault(inside, []).append(probe)
                self._writing.setdefault(outside, []).append(probe)
        self.dim = stop

    @contextmanager
    def laid(self, model: GPT) -> Iterator[None]:
        """Place the hooks on a model, before any others, which then see the same values."""
        points = [
            (name, self._at_point)
            for name in {**self._reading, **self._writing}
            if not name.endswith(QKV)
        ]
        with model.hooks(points), ExitStack() as placed:
            for name in self._writing:
                if name.endswith(QKV):
                    module = model.get_submodule(name)
                    handle = module.register_forward_hook(self._around(name))
                    placed.callback(handle.remove)
            yield

    def start(self, tokens: Int[Tensor, "row pos"]) -> None:
        """Forget the last batch; `tokens` are what the model is about to read."""
        self._tokens, self._leaves, self._inputs, self._found = tokens, [], {}, {}

    def features(self, score: Tensor) -> Float[Tensor, "row dim"]:
        """Return the features of the summed scores; zero where they do not depend on a site."""
        if score.requires_grad and self._leaves:
            torch.autograd.grad(score.sum(), self._leaves, allow_unused=True)
        rows = len(self._tokens)
        blocks = [
            found.flatten(1)
            if (found := self._found.get(name)) is not None
            else torch.zeros(rows, stop - start, device=self._tokens.device, dtype=torch.float32)
            for name, start, stop in self.blocks
        ]
        return torch.cat(blocks, dim=1)

    def _at_point(self, value: Tensor, point: object) -> Tensor | None:
        name = point.name  # type: ignore[attr-defined]
        if name in self._reading:
            self._read(name, value)
        return self._watched(name, value) if name in self._writing else None

    def _around(self, name: str) -> Callable[..., Tensor]:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            self._read(name, inputs[0])
            return self._watched(name, output)

        return hook

    @torch.no_grad()
    def _read(self, name: str, value: Tensor) -> None:
        for probe in self._reading[name]:
            self._inputs[probe.key] = probe.read(value, self._tokens)

    def _watched(self, name: str, value: Tensor) -> Tensor:
        if not value.requires_grad:
            # No selected site lies below this one: its output becomes a leaf, so that the graph
            # starts here and the backward pass stops here.
            value = value.detach().requires_grad_()
            self._leaves.append(value)
        # The hook sees the gradient of every row at once; rows do not mix below the score, so row i
        # of the features is the gradient of score i.
        value.register_hook(lambda gradient: self._coming_back(name, gradient))
        return value

    def _coming_back(self, name: str, gradient: Tensor) -> None:
        for probe in self._writing[name]:
            site, part = probe.site.name, probe.summed(gradient, self._inputs.pop(probe.key))
            self._found[site] = self._found[site] + part if site in self._found else part


@dataclass(frozen=True, eq=False)
class _Probe:
    """Projector of the input and the output gradient of a site in one block."""

    site: Site
    projection: Projection
    block: int

    @property
    def key(self) -> tuple[str, int]:
        """The site and the block that uses it."""
        return self.site.name, self.block

    def read(self, value: Tensor, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row at q"]:
        """Return the projected inputs; learned sinks are further positions of `qkv`."""
        site, inside = self.site, self.projection.inside
        if site.matrix in ("embed", "pos_embed"):
            at = tokens
            if site.matrix == "pos_embed":
                at = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            if inside is None:
                return functional.one_hot(at, site.width).to(value.dtype)
            return functional.embedding(at, inside.T)
        value = value.flatten(2)
        first, last = site.columns
        if last - first < value.shape[2]:
            value = value[..., first:last]
        if inside is None:
            return functional.pad(value, (0, 1), value=1.0) if site.bias else value
        if site.bias:
            return functional.linear(value, inside[:, :-1], inside[:, -1])
        return functional.linear(value, inside)

    def summed(
        self, gradient: Float[Tensor, "row pos out"], inputs: Float[Tensor, "row pos q"]
    ) -> Float[Tensor, "row p q"]:
        first, last = self.site.rows
        if last - first < gradient.shape[2]:
            gradient = gradient[..., first:last]
        if self.projection.out is not None:
            gradient = functional.linear(gradient, self.projection.out)
        # Sum over positions of (projected output gradient) (projected input)^T, row by row.
        return torch.bmm(gradient.transpose(1, 2), inputs)


# This name is the end of a module's name, not of a hook point's.
QKV = "attn.qkv"


def _blocks_using(cfg: GPTConfig, site: Site) -> list[int]:
    """Return the blocks that use a site: one, but every pass of a looped layer."""
    if not 0 <= site.layer < cfg.n_layers:
        return [site.layer]
    layer = cfg.layer_of(site.layer)
    return [block for block in range(cfg.n_layers) if cfg.layer_of(block) == layer]


def _wires(cfg: GPTConfig, site: Site, number: int) -> tuple[str, str]:
    """Return where the input of a matrix is observed in a block, and where its output is."""
    pre = cfg.norm_placement == "pre"
    block = f"blocks.{number}."
    up = "mlp.hook_pre_linear" if cfg.gated_mlp else "mlp.hook_pre"
    into_mlp = block + ("ln2.hook_out" if pre else "hook_resid_mid")
    final = "ln_final.hook_out" if pre else f"blocks.{cfg.n_layers - 1}.hook_resid_post"
    return {
        "embed": ("hook_embed", "hook_embed"),
        "pos_embed": ("hook_pos_embed", "hook_pos_embed"),
        "qkv": (block + QKV, block + QKV),
        "o": (block + "attn.hook_z", block + "hook_attn_out"),
        "gate": (into_mlp, block + "mlp.hook_pre"),
        "up": (into_mlp, block + up),
        "down": (block + "mlp.hook_post", block + "hook_mlp_out"),
        "unembed": (final, "hook_unembed"),
    }[site.matrix]
