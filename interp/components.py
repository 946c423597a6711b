"""Names of places inside a model, for people and for files.

    L1H0            output of head 0 of layer 1, at every position
    L5.mlp          output of the MLP of layer 5       L5.attn   output of its attention
    L3.resid_pre    residual stream entering layer 3
    L3.resid_pre@4  the same at position 4 only

A name is all that a saved result keeps, and all that a later command needs.
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


__all__ = ["SITES", "HookedModel", "Place", "device_of", "parse"]

# Hook point of each site; a head is one slice of `hook_z`, before the output projection.
SITES = {
    "resid_pre": "hook_resid_pre",
    "head": "attn.hook_z",
    "attn": "hook_attn_out",
    "mlp": "hook_mlp_out",
}


@runtime_checkable
class HookedModel(Protocol):
    """A decoder whose activations can be read and replaced by TransformerLens' names."""

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
class Place:
    """A component, or a component at one position."""

    site: str
    layer: int
    head: int | None = None
    pos: int | None = None

    def __str__(self) -> str:
        name = f"H{self.head}" if self.site == "head" else f".{self.site}"
        return f"L{self.layer}{name}" + ("" if self.pos is None else f"@{self.pos}")

    @property
    def hook(self) -> str:
        """The hook point where it can be read and replaced."""
        return f"blocks.{self.layer}.{SITES[self.site]}"

    @property
    def index(self) -> tuple[slice | int, ...]:
        """Where it lies in the value at that hook point, [prompt, pos, ...]."""
        at = slice(None) if self.pos is None else self.pos
        return (slice(None), at) if self.head is None else (slice(None), at, self.head)


def parse(name: str) -> Place:
    """The place that a name means.

    Raises:
        ModelError: The name is none.
    """
    found = re.fullmatch(r"L(\d+)(?:H(\d+)|\.(\w+))(?:@(\d+))?", name)
    if not found:
        raise ModelError(f"{name!r} names no place; names look like L1H0, L5.mlp, L3.resid_pre@4")
    layer, head, site, pos = found.groups()
    if head is None and site not in set(SITES) - {"head"}:
        raise ModelError(f"no place is called {site!r}{nearest(site, set(SITES) - {'head'})}")
    return Place(
        site or "head",
        int(layer),
        None if head is None else int(head),
        None if pos is None else int(pos),
    )


def device_of(model: object) -> torch.device:
    """Where the weights lie; the CPU for a model without weights."""
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")
