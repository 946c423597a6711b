"""Which values of a forward pass are kept, and how they are read off it.

A site is a hook point, or one head or neuron of it, that has a value for every token. What has
none (a pattern, whose size grows with the prompt) is found out by reading one token and then two.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp import components
from interp.components import HookedModel, device_of
from interp.errors import ModelError
from train.errors import HookError, nearest


__all__ = ["Site", "activations", "located", "part"]

# Lengths at which a site is looked at; what changes with the length is no value of a token.
PROBES = (1, 2)

Index = tuple[slice | int | list[int], ...]


@dataclass(frozen=True)
class Site:
    """What is kept of a row: its name, where it is read, the part of it, its axes."""

    name: str
    hook: str
    index: Index
    shape: tuple[int, ...]


def located(model: HookedModel, sites: Sequence[str]) -> tuple[Site, ...]:
    """The sites by their own names, each once, with the axes of a row.

    Args:
        sites: TransformerLens names, places (`L3.resid_pre`, `L1H0`), `L*.mlp` for every layer, or
            patterns of names (`blocks.*.hook_resid_pre`).

    Raises:
        HookError: No such hook point, or none that the pattern matches; nearest names are offered.
        ModelError: No such head or neuron, or no value per token.
    """
    if not sites:
        raise HookError("no site was named, so nothing would be kept; name one, as L3.resid_post")
    places = dict(one for name in sites for one in _places(model, name))
    hooks = sorted({hook for hook, _ in places.values()})
    values = []
    for length in PROBES:
        tokens = torch.zeros(1, length, dtype=torch.long, device=device_of(model))
        values.append(activations(model, tokens, hooks))
    found = []
    for name, (hook, index) in places.items():
        short, longer = (part(value[hook], index, name) for value in values)
        if not (_is_per_row(short, 1) and _is_per_row(longer, 2)) or (
            short.shape[2:] != longer.shape[2:]
        ):
            raise ModelError(
                f"{name} has shape {tuple(longer.shape)} for one prompt of two tokens: no value "
                "per token, so it cannot be kept by rows; keep what it is made of (hook_q, hook_k)"
            )
        found.append(Site(name, hook, index, tuple(longer.shape[2:])))
    return tuple(found)


@torch.inference_mode()
def activations(
    model: HookedModel, tokens: Int[Tensor, "window pos"], hooks: Sequence[str]
) -> dict[str, Tensor]:
    """Values at some hook points, of one forward pass that stops at the last of them."""
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, point: Any) -> None:
        found[point.name] = value
        if len(found) == len(hooks):
            raise _Enough

    with suppress(_Enough):
        model.run_with_hooks(tokens, fwd_hooks=[(hook, keep) for hook in hooks])
    return found


def part(value: Tensor, index: Index, name: str) -> Tensor:
    """The part of a hook point's value that a site is.

    Raises:
        ModelError: There is no such head or neuron.
    """
    try:
        return value[index] if index else value
    except IndexError:
        raise ModelError(
            f"{name} does not exist: the value there has shape {tuple(value.shape)}"
        ) from None


def _places(model: HookedModel, name: str) -> list[tuple[str, tuple[str, Index]]]:
    """Own name, hook point and index of everything that a name means."""
    if name.startswith("L*"):
        layers = range(model.cfg.n_layers)
        return [one for layer in layers for one in _places(model, f"L{layer}{name[2:]}")]
    names = getattr(model, "hook_names", None)
    if "*" in name:
        known = names.own if names else ()
        matched = [own for own in known if fnmatchcase(own, name)]
        if not matched:
            raise HookError(f"the pattern {name!r} matches no hook point{nearest(name, known)}")
        return [(own, (own, ())) for own in matched]
    if not components.NAME.fullmatch(name):
        hook = names.resolve(name) if names else name
        return [(hook, (hook, ()))]
    place = components.parse(name)
    if place.pos is not None:
        raise ModelError(f"{name}: a store keeps every position; leave out what follows the @")
    hook = names.resolve(place.hook) if names else place.hook
    if place.head is None and place.neuron is None:
        return [(hook, (hook, ()))]
    return [(str(place), (hook, place.index))]


def _is_per_row(value: Tensor, length: int) -> bool:
    return value.ndim >= 2 and tuple(value.shape[:2]) == (1, length)


class _Enough(Exception):
    """Every site was seen: what lies above is not computed."""
