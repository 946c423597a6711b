"""Selection of weights: the slices of weight matrices that component names stand for.

    L1H0            the four matrices of a head: L1H0.q, L1H0.k, L1H0.v, L1H0.o
    L1H0.k          one of them          L1H0.pattern   its queries and keys
    L1.attn         L1.attn.qkv and L1.attn.o, all heads together
    L1.mlp          L1.mlp.up, L1.mlp.down, and L1.mlp.gate where there is one
    L5N17           a row into the neuron and the column out of it
    embed, pos_embed, unembed

A slice is called a *site*. Positions (`L1H0@3`) are dropped, because weights serve all positions.
Sites of the residual stream have no weights and are refused. Keys and values that several heads
share are counted once, as they are stored: with two queries to a key, L1H3 selects L1H1.k.

A tied table is two components, `embed` and `unembed`: its gradient is the sum of both, but reading
a token and writing one are different causes. A bias is treated as the weight of one more input that
is always 1. The bias added after all heads, and after all neurons, belongs to no single one of
them. Gains and biases of norms belong to no component and are left out.
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
from train.short_repr import short_repr


__all__ = ["TOP_WEIGHTS", "Selection", "Site", "Within", "select_weights"]

# Number of strongest components selected when a whole result of patching is given.
TOP_WEIGHTS = 5
TABLES = ("embed", "pos_embed", "unembed")
MATRIX = re.compile(r"L(?P<layer>\d+)(?:H(?P<head>\d+)\.(?P<part>o)|\.(?P<matrix>\w+\.\w+))")

Within = Iterable[str | Component] | Effects | None
Span = tuple[int, int]


@dataclass(frozen=True)
class Site:
    """A rectangle of one weight matrix: outputs `rows`, inputs `columns`.

    Attributes:
        name: Name of the slice, as in the module's table.
        matrix: `embed`, `pos_embed`, `unembed`, or `qkv`, `o`, `up`, `gate`, `down` of a layer.
        layer: Layer of the matrix; -1 for the tables below the first layer, the number of layers
            for `unembed`.
        rows: Range of outputs of the matrix; in qkv, queries come first, then keys, then values.
        columns: Range of its inputs; for tables, the token ids or positions.
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
        """Return the number of outputs."""
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> int:
        """Return the number of inputs, including the bias."""
        return self.columns[1] - self.columns[0] + self.bias

    def holds(self, other: "Site") -> bool:
        """Return whether every weight of the other site is one of this site's."""
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
        names: Requested names; () means all.
    """

    names: tuple[str, ...]
    sites: tuple[Site, ...]

    __repr__ = short_repr

    @property
    def lowest(self) -> int:
        """Return the layer of the lowest site; -1 for the tables below layer 0."""
        return self.sites[0].layer


def select_weights(cfg: GPTConfig, within: Within = None) -> Selection:
    """Return the sites of some components of an architecture.

    Args:
        within: Names, components, or a result of patching, of which the five strongest components
            are used; None: every matrix of attention and MLPs and every table (not sinks, gates
            and value residuals).

    Raises:
        EvidenceError: Nothing was named, or something that has no weights in this architecture.

    Examples:
        >>> selection = gradients.select_weights(model.cfg, ["L0.mlp", "L1H0"])
        >>> [site.name for site in selection.sites]
        ['L0.mlp.up', 'L0.mlp.down', 'L1H0.q', 'L1H0.k', 'L1H0.v', 'L1H0.o']
    """
    if cfg.retention:
        raise EvidenceError(
            "gradients are projected matrix by matrix, and a model with "
            f"attention={cfg.attention} has matrices that are generated from the input; use "
            "lexical evidence or replay"
        )
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
    own = [block for block in range(cfg.n_layers) if cfg.pass_of(block) == 0]
    layers = [f"L{layer}.{part}" for layer in own for part in ("attn", "mlp")]
    return ["embed", *["pos_embed"][: cfg.position == "learned"], *layers, "unembed"]


def _sites(cfg: GPTConfig, name: str) -> list[Site]:
    if name in TABLES:
        return [_table(cfg, name)]
    matrix = MATRIX.fullmatch(name)
    if matrix:
        layer = _own_layer(cfg, _below(int(matrix["layer"]), cfg.n_layers, "layers", name), name)
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
    layer = _own_layer(cfg, _below(place.layer, cfg.n_layers, "layers", name), name)
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
        # A key or value named alone is numbered as it is stored; named with its head, it is the one
        # that the head uses: head // (heads per key).
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
        Site(f"{name}.qkv", "qkv", layer, (0, outputs), (0, cfg.d_model), cfg.biased_qkv),
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
    return Site(f"L{layer}H{head}.{part}", "qkv", layer, rows, (0, cfg.d_model), cfg.biased_qkv)


def _head_out(cfg: GPTConfig, layer: int, head: int) -> Site:
    columns = head * cfg.d_head, (head + 1) * cfg.d_head
    return Site(f"L{layer}H{head}.o", "o", layer, (0, cfg.d_model), columns)


def _own_layer(cfg: GPTConfig, block: int, name: str) -> int:
    """Return `block`, unless it is a later pass of a looped layer."""
    first = min(one for one in range(cfg.n_layers) if cfg.layer_of(one) == cfg.layer_of(block))
    if block != first:
        raise EvidenceError(
            f"{name!r} is a later pass of the looped layer {first} and has no weights of its own; "
            f"name L{first}"
        )
    return block


def _below(index: int, n: int, what: str, name: str) -> int:
    if index >= n:
        raise EvidenceError(f"{name!r} is none of this model's: it has {n} {what}, counted from 0")
    return index


def _inside(inner: Span, outer: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]
