"""From names of components to the slices of weights whose gradients are collected.

    L1H0            the four matrices of a head: L1H0.q, L1H0.k, L1H0.v, L1H0.o
    L1H0.k          one of them          L1H0.pattern   its queries and keys
    L1.attn         L1.attn.qkv and L1.attn.o, all heads together
    L1.mlp          L1.mlp.up, L1.mlp.down, and L1.mlp.gate where there is one
    L5N17           a row into the neuron and the column out of it
    embed, pos_embed, unembed

A slice is called a *site*. Positions (`L1H0@3`) are dropped, for weights serve all positions.
Places of the residual stream have no weights and are refused. Keys and values that several heads
share are counted once, as they are stored: with two queries to a key, L1H3 brings L1H1.k.

A tied table is two components, `embed` and `unembed`: its gradient is the sum of both, but what
reads a token and what writes one are different causes. A bias is the weight of one more input that
is always 1; the bias behind all heads, and behind all neurons, belongs to no single one of them.
Gains and biases of norms belong to no component and are left out.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from data_attribution.errors import EvidenceError
from interp.components import Component, parse
from interp.errors import ModelError
from interp.patching import Effects
from train.errors import nearest
from train.model import GPTConfig


__all__ = ["TOP_WEIGHTS", "Selection", "Site", "Within", "select_weights"]

# How many of its strongest places stand for a result of patching that is given whole.
TOP_WEIGHTS = 5
TABLES = ("embed", "pos_embed", "unembed")
MATRIX = re.compile(r"L(?P<layer>\d+)(?:H(?P<head>\d+)\.(?P<part>o)|\.(?P<matrix>\w+\.\w+))")

Within = Iterable[str | Component] | Effects | None
Span = tuple[int, int]


@dataclass(frozen=True)
class Site:
    """A rectangle of one weight: outputs `rows`, inputs `columns`.

    Attributes:
        name: See above.
        matrix: `embed`, `pos_embed`, `unembed`, or `qkv`, `o`, `up`, `gate`, `down` of a layer.
        layer: -1 for what lies below the first layer, the number of layers for `unembed`.
        rows: Of the outputs of the matrix, from and to; qkv: queries, then keys, then values.
        columns: Of its inputs; of tables: the token ids or positions.
        bias: Whether one more column, always 1, stands for the bias.
    """

    name: str
    matrix: str
    layer: int
    rows: Span
    columns: Span
    bias: bool = False

    @property
    def height(self) -> int:
        """Outputs."""
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> int:
        """Inputs, the bias counted."""
        return self.columns[1] - self.columns[0] + self.bias

    def holds(self, other: "Site") -> bool:
        """Whether every weight of the other is one of this."""
        return (
            (self.matrix, self.layer) == (other.matrix, other.layer)
            and _inside(other.rows, self.rows)
            and _inside(other.columns, self.columns)
            and self.bias >= other.bias
        )


@dataclass(frozen=True)
class Selection:
    """Sites from the bottom of the model to its top, none inside another.

    Attributes:
        names: What was asked for; () is all.
    """

    names: tuple[str, ...]
    sites: tuple[Site, ...]

    @property
    def lowest(self) -> int:
        """Layer of the lowest site; -1: the tables below layer 0."""
        return self.sites[0].layer


def select_weights(cfg: GPTConfig, within: Within = None) -> Selection:
    """The sites of some components of an architecture.

    Args:
        within: Names, places, or a result of patching, of which the five strongest places are
            meant; None: every matrix and table.

    Raises:
        EvidenceError: Nothing was named, or something that has no weights in this architecture.
    """
    if isinstance(within, Effects):
        within = within.top(TOP_WEIGHTS)
    asked = (within,) if isinstance(within, str) else within
    names = _all(cfg) if asked is None else [str(name) for name in asked]
    if not names:
        raise EvidenceError("no component was named; name some, as L1H0 or L1.mlp, or leave all")
    found = dict.fromkeys(site for name in names for site in _sites(cfg, name))
    kept = [one for one in found if not any(it.holds(one) for it in found if it != one)]
    kept.sort(key=lambda site: (site.layer, _ORDER.index(site.matrix), site.rows, site.columns))
    return Selection(() if asked is None else tuple(dict.fromkeys(names)), tuple(kept))


_ORDER = ("embed", "pos_embed", "qkv", "o", "gate", "up", "down", "unembed")


def _all(cfg: GPTConfig) -> list[str]:
    layers = [f"L{layer}.{part}" for layer in range(cfg.n_layers) for part in ("attn", "mlp")]
    return ["embed", *["pos_embed"][: cfg.position == "learned"], *layers, "unembed"]


def _sites(cfg: GPTConfig, name: str) -> list[Site]:
    if name in TABLES:
        return [_table(cfg, name)]
    matrix = MATRIX.fullmatch(name)
    if matrix:
        layer = _below(int(matrix["layer"]), cfg.n_layers, "layers", name)
        if matrix["part"]:
            head = _below(int(matrix["head"]), cfg.n_heads, "heads", name)
            return [_head_out(cfg, layer, head)]
        whole = {site.name: site for site in [*_attn(cfg, layer), *_mlp(cfg, layer)]}
        if name in whole:
            return [whole[name]]
        raise EvidenceError(f"the model has no matrix {name!r}{nearest(name, whole)}")
    return _of_place(cfg, _parsed(name), name)


def _parsed(name: str) -> Component:
    try:
        return parse(name)
    except ModelError as error:
        raise EvidenceError(f"{error}; or embed, pos_embed, unembed") from None


def _of_place(cfg: GPTConfig, place: Component, name: str) -> list[Site]:
    layer = _below(place.layer, cfg.n_layers, "layers", name)
    if place.site == "attn":
        return _attn(cfg, layer)
    if place.site == "mlp":
        return _mlp(cfg, layer)
    if place.neuron is not None:
        return _neuron(cfg, layer, _below(place.neuron, cfg.d_mlp, "neurons", name))
    if place.head is None:
        raise EvidenceError(
            f"{name!r} is a place of the residual stream and has no weights; name the heads and "
            "MLPs that write to it, as L1H0 or L1.mlp"
        )
    parts = {"head": "qkvo", "pattern": "qk"}.get(place.site, place.site)
    found = []
    for part in parts:
        if part == "o":
            found.append(_head_out(cfg, layer, place.head))
            continue
        n_heads = cfg.n_heads if part == "q" else cfg.n_key_value_heads
        # Named alone, a key is counted as it is stored; with its head, it is the one the head uses.
        shared = cfg.n_heads // n_heads if place.site in ("head", "pattern") else 1
        above = cfg.n_heads if shared > 1 else n_heads
        head = _below(place.head, above, f"heads with {part!r}", name) // shared
        found.append(_head_in(cfg, layer, head, part))
    return found


def _table(cfg: GPTConfig, name: str) -> Site:
    if name == "unembed":
        return Site(name, name, cfg.n_layers, (0, cfg.d_vocab), (0, cfg.d_model))
    if name == "pos_embed" and cfg.position != "learned":
        raise EvidenceError(
            f"the model has no pos_embed: its positions are {cfg.position!r} and have no weights"
        )
    n_rows = cfg.d_vocab if name == "embed" else cfg.n_ctx
    return Site(name, name, -1, (0, cfg.d_model), (0, n_rows))


def _attn(cfg: GPTConfig, layer: int) -> list[Site]:
    attended = cfg.n_heads * cfg.d_head
    outputs = attended + 2 * cfg.n_key_value_heads * cfg.d_head
    name = f"L{layer}.attn"
    return [
        Site(f"{name}.qkv", "qkv", layer, (0, outputs), (0, cfg.d_model), cfg.bias),
        Site(f"{name}.o", "o", layer, (0, cfg.d_model), (0, attended), cfg.bias),
    ]


def _mlp(cfg: GPTConfig, layer: int) -> list[Site]:
    into = ("gate", "up") if cfg.gated_mlp else ("up",)
    name = f"L{layer}.mlp"
    return [
        *(
            Site(f"{name}.{one}", one, layer, (0, cfg.d_mlp), (0, cfg.d_model), cfg.bias)
            for one in into
        ),
        Site(f"{name}.down", "down", layer, (0, cfg.d_model), (0, cfg.d_mlp), cfg.bias),
    ]


def _neuron(cfg: GPTConfig, layer: int, neuron: int) -> list[Site]:
    *into, down = _mlp(cfg, layer)
    name, at = f"L{layer}N{neuron}", (neuron, neuron + 1)
    rows = [Site(f"{name}.{i.matrix}", i.matrix, layer, at, i.columns, cfg.bias) for i in into]
    return [*rows, Site(f"{name}.down", "down", layer, down.rows, at)]


def _head_in(cfg: GPTConfig, layer: int, head: int, part: str) -> Site:
    before = {"q": 0, "k": cfg.n_heads, "v": cfg.n_heads + cfg.n_key_value_heads}[part]
    first = (before + head) * cfg.d_head
    rows = first, first + cfg.d_head
    return Site(f"L{layer}H{head}.{part}", "qkv", layer, rows, (0, cfg.d_model), cfg.bias)


def _head_out(cfg: GPTConfig, layer: int, head: int) -> Site:
    columns = head * cfg.d_head, (head + 1) * cfg.d_head
    return Site(f"L{layer}H{head}.o", "o", layer, (0, cfg.d_model), columns)


def _below(index: int, n: int, what: str, name: str) -> int:
    if index >= n:
        raise EvidenceError(f"{name!r} is none of this model's: it has {n} {what}, counted from 0")
    return index


def _inside(inner: Span, outer: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]
