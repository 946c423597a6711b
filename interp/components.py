"""Components of a model (a head, an MLP, a residual stream) and the names written for them.

    L1H0            output of head 0 of layer 1, at every position
    L1H0.q          its query; .k and .v its key and value, .pattern its attention pattern
    L5.mlp          output of the MLP of layer 5       L5.attn   output of its attention
    L5N17           neuron 17 of that MLP, after the activation
    L3.resid_pre    residual stream entering layer 3; resid_mid after its attention, resid_post
                    after the layer
    L3.resid_pre@4  the same at position 4 only        L1H0@3,5  at positions 3 and 5 together
    L1H0.pattern@5<2  attention weight from position 5 to position 2

An MLP, an attention output or a residual stream may also be named by its hook point
(`blocks.5.hook_mlp_out`), and a head or an MLP as in a circuit (`a1.h0`, `m5`).

Saved results store only these names, and every command accepts them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import ModelError
from train.errors import nearest
from train.model import GPT


__all__ = ["SITES", "Component", "HookedModel", "device_of", "heads_at", "layers_around", "parse"]
__all__ += ["parse_all", "read_weights", "refuse_dead_site"]

# The hook point of each site. A head is one slice of `hook_z`, before the output projection.
SITES = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "head": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "attn": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "neuron": "mlp.hook_post",
}
OF_HEADS = ("head", "q", "k", "v", "pattern")
NAME = re.compile(
    r"L(?P<layer>\d+)"
    r"(?:H(?P<head>\d+)(?:\.(?P<part>\w+))?|N(?P<neuron>\d+)|\.(?P<site>\w+))"
    r"(?:@(?P<pos>\d+(?:,\d+)*))?(?:<(?P<key>\d+))?"
)


@runtime_checkable
class HookedModel(Protocol):
    """A decoder whose activations can be read and replaced under TransformerLens's hook names."""

    @property
    def cfg(self) -> Any: ...

    def __call__(
        self, tokens: Int[Tensor, "prompt pos"], /
    ) -> Float[Tensor, "prompt pos vocab"]: ...

    def run_with_cache(
        self, tokens: Int[Tensor, "prompt pos"], /, *, names_filter: Sequence[str]
    ) -> tuple[Float[Tensor, "prompt pos vocab"], Mapping[Any, Tensor]]: ...

    def run_with_hooks(
        self,
        tokens: Int[Tensor, "prompt pos"],
        /,
        *,
        fwd_hooks: Sequence[tuple[str, Callable[..., Tensor | None]]],
    ) -> Float[Tensor, "prompt pos vocab"]: ...


@dataclass(frozen=True)
class Component:
    """Component of a model, at all positions or at some.

    Attributes:
        site: A key of `SITES`.
        layer: Layer, counted from 0.
        head: Head, for sites that exist once per head. For keys and values that several query heads
            share (GQA), the index of the key-value head.
        pos: One position, several positions taken together, or None for all. For a pattern, the
            query position.
        neuron: Neuron, for the site `neuron`.
        key: For a pattern, the one position attended to; None for all.

    Examples:
        >>> str(components.Component("mlp", 1)), str(components.Component("resid_pre", 1, pos=4))
        ('L1.mlp', 'L1.resid_pre@4')
        >>> components.parse("L0H3").hook
        'blocks.0.attn.hook_z'
    """

    site: str
    layer: int
    head: int | None = None
    pos: int | tuple[int, ...] | None = None
    neuron: int | None = None
    key: int | None = None

    def __str__(self) -> str:
        name = f".{self.site}"
        if self.head is not None:
            name = f"H{self.head}" + ("" if self.site == "head" else f".{self.site}")
        elif self.neuron is not None:
            name = f"N{self.neuron}"
        at = "" if self.pos is None else "@" + ",".join(map(str, self.positions or ()))
        return f"L{self.layer}{name}{at}" + ("" if self.key is None else f"<{self.key}")

    @property
    def hook(self) -> str:
        """The hook point where the component can be read and replaced."""
        return f"blocks.{self.layer}.{SITES[self.site]}"

    @property
    def positions(self) -> tuple[int, ...] | None:
        """The positions as a tuple; None for all."""
        return (self.pos,) if isinstance(self.pos, int) else self.pos

    @property
    def index(self) -> tuple[slice | int | list[int], ...]:
        """The index of the component in the value at its hook point.

        That value is [prompt, pos, ...], or [prompt, head, query, key] for a pattern.
        """
        everything = slice(None)
        at = list(self.pos) if isinstance(self.pos, tuple) else self.pos
        where = everything if at is None else at
        if self.site == "pattern":
            # A slice and not an int, so that the indexed value keeps the order of its axes.
            head = slice(self.head, None if self.head is None else self.head + 1)
            to = everything if self.key is None else self.key
            return everything, head, where, to
        last = self.head if self.site in OF_HEADS else self.neuron
        return (everything, where) if last is None else (everything, where, last)


def parse_all(places: Sequence[Component | str] | Component | str) -> list[Component]:
    """Return the components of several names, or of one.

    Examples:
        >>> components.parse_all("L1H0") == components.parse_all(["L1H0"])
        True
    """
    each = [places] if isinstance(places, Component | str) else places
    return [parse(one) if isinstance(one, str) else one for one in each]


def parse(name: str) -> Component:
    """Return the component that a name stands for.

    Raises:
        ModelError: The name does not denote a component.

    Examples:
        >>> place = components.parse("L1H0.q@4")
        >>> place.layer, place.head, place.pos, place.hook
        (1, 0, 4, 'blocks.1.attn.hook_q')
    """
    name = _translated(name)
    found = NAME.fullmatch(name)
    if not found:
        raise ModelError(
            f"{name!r} names no place; names look like L1H0, L1H0.q, L5.mlp, L5N17, L3.resid_pre@4"
        )
    part, site = found["part"], found["site"]
    known = set(OF_HEADS) - {"head"} if found["head"] else set(SITES) - {*OF_HEADS, "neuron"}
    if (part or site) and (part or site) not in known:
        raise ModelError(f"no place is called {part or site!r}{nearest(part or site, known)}")
    if found["key"] and part != "pattern":
        raise ModelError(f"{name!r}: only a pattern attends to a position, as in L1H0.pattern@5<2")
    at = tuple(int(one) for one in found["pos"].split(",")) if found["pos"] else None
    head, neuron, key = (
        None if found[group] is None else int(found[group]) for group in ("head", "neuron", "key")
    )
    return Component(
        site or part or ("neuron" if neuron is not None else "head"),
        int(found["layer"]),
        head=head,
        pos=at[0] if at and len(at) == 1 else at,
        neuron=neuron,
        key=key,
    )


def _translated(name: str) -> str:
    """Return our name of a component that is named as in a circuit or by its hook point.

    Raises:
        ModelError: The hook point holds all heads or all neurons, and the name is of none of them.
    """
    if found := re.fullmatch(r"a(\d+)\.h(\d+)|m(\d+)", name):
        return f"L{found[3]}.mlp" if found[3] else f"L{found[1]}H{found[2]}"
    if found := re.fullmatch(r"blocks\.(\d+)\.([\w.]+)", name):
        site = next((site for site, hook in SITES.items() if hook == found[2]), "")
        if site in (*OF_HEADS, "neuron"):
            one = {"head": "H0", "neuron": "N0"}.get(site, f"H0.{site}")
            raise ModelError(f"{name} holds all of a layer; name one, such as L{found[1]}{one}")
        return f"L{found[1]}.{site}" if site else name
    return name


def heads_at(cfg: Any, site: str) -> int:
    """Return the number of heads at a site: key-value heads for k and v, which heads may share.

    Examples:
        >>> components.heads_at(model.cfg, "head"), components.heads_at(model.cfg, "k")
        (4, 4)
    """
    # In TransformerLens the number of key-value heads is None where every head has its own.
    shared = getattr(cfg, "n_key_value_heads", None) if site in ("k", "v") else None
    return shared or cfg.n_heads


def layers_around(layer: int, window: int, n_layers: int) -> range:
    """Return the `window` layers centred on `layer`, cut off at both ends (Meng et al. 2022).

    Examples:
        >>> [list(components.layers_around(layer, 3, n_layers=12)) for layer in (0, 5)]
        [[0, 1], [4, 5, 6]]
    """
    first = layer - window // 2
    return range(max(0, first), min(n_layers, first + window))


def read_weights(model: object, what: str) -> GPT:
    """Return a model whose weights and parts an analysis reads by name, or refuse it.

    Raises:
        ModelError: It is a model of another library, such as a bridge of TransformerLens.

    Examples:
        >>> components.read_weights(model, "the logit lens") is model
        True
    """
    if not isinstance(model, GPT):
        raise ModelError(
            f"{what} reads the weights of a model from interp.models.load, and this is a "
            f"{type(model).__name__}; it can be patched, ablated, traced, probed and steered, by "
            "whole forward passes"
        )
    return model


def refuse_dead_site(model: object, place: Component) -> None:
    """Raise a ModelError if a value that is put at a site would not reach what the site feeds.

    In a `TransformerBridge` (TransformerLens 4.3) `hook_resid_mid` is the input of the norm before
    the MLP. A value put there reaches the MLP, but not the residual stream beside it.

    Examples:
        >>> components.refuse_dead_site(model, components.parse("L1.resid_mid"))
    """
    if place.site == "resid_mid" and type(model).__name__ == "TransformerBridge":
        raise ModelError(
            f"{place} cannot be replaced in a TransformerBridge: a value put at {place.hook} "
            "reaches the MLP only, not the stream beside it; take resid_pre or resid_post"
        )


def device_of(model: object) -> torch.device:
    """Return the device of the model's weights; the CPU for a model without weights.

    Examples:
        >>> components.device_of(model).type
        'cpu'
    """
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")
