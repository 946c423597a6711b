"""What is written down during one forward and one backward pass: projected factors of gradients.

The input of every selected matrix is projected as it passes by; the gradient of its output when it
comes back, and at once multiplied with that input, summed over positions. Neither activations nor
output gradients are kept longer than that. The output of the lowest matrix becomes the root of the
graph, so nothing below it is recorded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from data_attribution.gradients import projecting
from data_attribution.gradients.projecting import Projection
from data_attribution.gradients.selecting import Selection, Site
from train.architecture import GPTConfig


__all__ = ["Tape"]

Hook = tuple[str, Callable[..., Tensor | None]]


@dataclass(frozen=True)
class _Wires:
    """Where the input of a matrix is seen, and its outputs, which may come in several pieces."""

    inside: str
    outputs: tuple[tuple[str, int, int], ...]


class Tape:
    """Collects for one batch at a time.

    Args:
        selection: Of sites.
        made: Their projections, on the model's device.
        rank: Of these.
    """

    def __init__(
        self, cfg: GPTConfig, selection: Selection, made: Mapping[str, Projection], rank: int
    ) -> None:
        self.selection = selection
        self.blocks: list[tuple[str, int, int]] = []
        self.leaves: list[Tensor] = []
        self.tokens = torch.empty(0, dtype=torch.long)
        self.values = torch.empty(0)
        self._inputs: dict[str, Tensor] = {}
        self._readers: dict[str, list[_Reader]] = {}
        self._writers: dict[str, list[_Writer]] = {}
        stop = 0
        for site in selection.sites:
            height, width = projecting.shape(site, rank)
            start, stop = stop, stop + height * width
            self.blocks.append((site.name, start, stop))
            self._wire(cfg, site, made[site.name], start, (height, width))
        self.dim = stop

    def start(self, tokens: Int[Tensor, "row pos"]) -> None:
        """Forget the last batch; `tokens` are what the model is about to read."""
        self.tokens = tokens
        self.leaves = []
        self._inputs = {}
        self.values = torch.zeros(len(tokens), self.dim, device=tokens.device)

    def hooks(self) -> list[Hook]:
        """What to place on the model; before other hooks, which then see the same values."""
        return [(name, self._passing) for name in {**self._readers, **self._writers}]

    def features(self, score: Tensor) -> Float[Tensor, "row dim"]:
        """Of the sum of all scores; zero where it does not depend on a site."""
        if score.requires_grad and self.leaves:
            torch.autograd.grad(score.sum(), self.leaves, allow_unused=True)
        return self.values

    def _wire(
        self,
        cfg: GPTConfig,
        site: Site,
        projection: Projection,
        start: int,
        shape: tuple[int, int],
    ) -> None:
        wires = _wires(cfg, site)
        self._readers.setdefault(wires.inside, []).append(_Reader(site, projection.inside))
        for hook, first, last in wires.outputs:
            piece = max(first, site.rows[0]), min(last, site.rows[1])
            if piece[0] < piece[1]:
                writer = _Writer.of(site, projection, piece, first, start, shape)
                self._writers.setdefault(hook, []).append(writer)

    def _passing(self, value: Tensor, point: "object") -> Tensor | None:
        name = point.name  # type: ignore[attr-defined]
        with torch.no_grad():
            for reader in self._readers.get(name, ()):
                self._inputs[reader.site.name] = reader.read(value, self.tokens)
        if name not in self._writers:
            return None
        if not value.requires_grad:
            value = value.detach().requires_grad_()
            self.leaves.append(value)
        value.register_hook(lambda gradient: self._coming_back(name, gradient))
        return value

    def _coming_back(self, name: str, gradient: Tensor) -> None:
        for writer in self._writers[name]:
            writer.add(gradient, self._inputs[writer.site.name], self.values)


@dataclass(frozen=True, eq=False)
class _Reader:
    """Projects the input of a site."""

    site: Site
    inside: Tensor | None

    def read(self, value: Tensor, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos q"]:
        site = self.site
        if site.matrix in ("embed", "pos_embed"):
            at = tokens
            if site.matrix == "pos_embed":
                at = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            if self.inside is None:
                return functional.one_hot(at, site.width).to(value.dtype)
            return functional.embedding(at, self.inside.T)
        value = (value.flatten(2) if site.matrix == "o" else value).detach()
        first, last = site.columns
        value = value[..., first:last]
        if self.inside is None:
            return functional.pad(value, (0, 1), value=1.0) if site.bias else value
        if site.bias:
            return functional.linear(value, self.inside[:, :-1], self.inside[:, -1])
        return functional.linear(value, self.inside)


@dataclass(frozen=True, eq=False)
class _Writer:
    """Projects the gradient of a piece of a site's output and adds the outer products.

    Attributes:
        piece: Of the last axis of what comes back.
        out: Projection of that piece, or None.
        rows: Of the block, those that the piece writes.
        start: First column of the block, which has `shape`.
    """

    site: Site
    piece: slice
    out: Tensor | None
    rows: slice
    start: int
    shape: tuple[int, int]

    @classmethod
    def of(
        cls,
        site: Site,
        projection: Projection,
        piece: tuple[int, int],
        offset: int,
        start: int,
        shape: tuple[int, int],
    ) -> "_Writer":
        within = slice(piece[0] - site.rows[0], piece[1] - site.rows[0])
        whole = projection.out is None
        out = None if projection.out is None else projection.out[:, within].contiguous()
        rows = within if whole else slice(0, shape[0])
        return cls(site, slice(piece[0] - offset, piece[1] - offset), out, rows, start, shape)

    def add(
        self,
        gradient: Float[Tensor, "row pos *out"],
        inputs: Float[Tensor, "row pos q"],
        values: Float[Tensor, "row dim"],
    ) -> None:
        gradient = gradient.flatten(2)[..., self.piece]
        if self.out is not None:
            gradient = functional.linear(gradient, self.out)
        height, width = self.shape
        block = values[:, self.start : self.start + height * width].unflatten(1, self.shape)
        # Not baddbmm_ into the block: torch's kernel for that goes row by row, 4 times slower.
        block[:, self.rows] += torch.bmm(gradient.transpose(1, 2), inputs)


def _wires(cfg: GPTConfig, site: Site) -> _Wires:
    pre = cfg.norm_placement == "pre"
    block = f"blocks.{site.layer}."
    attended, shared = cfg.n_heads * cfg.d_head, cfg.n_key_value_heads * cfg.d_head
    whole = (site.rows[0], site.rows[1])
    up = "mlp.hook_pre_linear" if cfg.gated_mlp else "mlp.hook_pre"
    into_mlp = block + ("ln2.hook_out" if pre else "hook_resid_mid")
    final = "ln_final.hook_out" if pre else f"blocks.{cfg.n_layers - 1}.hook_resid_post"
    queries, keys = attended, attended + shared
    wires: dict[str, tuple[str, Sequence[tuple[str, int, int]]]] = {
        "embed": ("hook_embed", [("hook_embed", *whole)]),
        "pos_embed": ("hook_pos_embed", [("hook_pos_embed", *whole)]),
        "qkv": (
            block + ("ln1.hook_out" if pre else "hook_resid_pre"),
            [
                (block + "attn.hook_q", 0, queries),
                (block + "attn.hook_k", queries, keys),
                (block + "attn.hook_v", keys, keys + shared),
            ],
        ),
        "o": (block + "attn.hook_z", [(block + "hook_attn_out", 0, cfg.d_model)]),
        "gate": (into_mlp, [(block + "mlp.hook_pre", 0, cfg.d_mlp)]),
        "up": (into_mlp, [(block + up, 0, cfg.d_mlp)]),
        "down": (block + "mlp.hook_post", [(block + "hook_mlp_out", 0, cfg.d_model)]),
        "unembed": (final, [("hook_unembed", *whole)]),
    }
    inside, outputs = wires[site.matrix]
    return _Wires(inside, tuple(outputs))
