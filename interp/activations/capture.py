"""Capture of activations: which values of a forward pass are kept, and how they are read.

A site is a hook point, or one head or neuron of it, with a value for every token. Hook points
without one are detected by running the model on one token and then on two: the shape of an
attention pattern, for example, grows with the prompt.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Int
from torch import Tensor

from interp import components
from interp.components import HookedModel, device_of
from interp.errors import ModelError
from train.errors import HookError, nearest


__all__ = ["Site", "activations", "located", "part"]

# Prompt lengths at which a site is probed. If the shape of a row differs between them, the site has
# no value per token.
PROBES = (1, 2)

Index = tuple[slice | int | list[int], ...]


@dataclass(frozen=True)
class Site:
    """Site to be kept: name, hook point, index into the value there, and shape of one row."""

    name: str
    hook: str
    index: Index
    shape: tuple[int, ...]


def located(model: HookedModel, sites: Sequence[str]) -> tuple[Site, ...]:
    """Resolve names of sites, each kept once, and find the shape of their rows.

    Args:
        model: A hooked model.
        sites: TransformerLens names, names of components (`L3.resid_pre`, `L1H0`), `L*.mlp` for
            every layer, or patterns of names (`blocks.*.hook_resid_pre`).

    Raises:
        HookError: There is no such hook point, or none that matches the pattern; the error suggests
            the nearest names. Or no site was given.
        ModelError: There is no such head or neuron, a name contains a position, or the site has no
            value per token.
    """
    if not sites:
        raise HookError("no site was named, so nothing would be kept; name one, as L3.resid_post")
    names = [sites] if isinstance(sites, str) else sites
    places = dict(one for name in names for one in _places(model, name))
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
    """Return the values at some hook points, from a forward pass that stops at the last of them."""
    found: dict[str, Tensor] = {}

    def keeping(name: str) -> tuple[str, Callable[..., None]]:
        # By the name that was asked for: TransformerLens calls some points by several names.
        def keep(value: Tensor, hook: object) -> None:
            found[name] = value
            if len(found) == len(hooks):
                raise _Captured

        return name, keep

    with suppress(_Captured):
        model.run_with_hooks(tokens, fwd_hooks=[keeping(name) for name in hooks])
    return found


def part(value: Tensor, index: Index, name: str) -> Tensor:
    """Return the part of a hook point's value that belongs to a site.

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
    """Return site name, hook point and index of every site that a name stands for."""
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


class _Captured(Exception):
    """Signal that every site was read, so that the layers above are not computed."""
