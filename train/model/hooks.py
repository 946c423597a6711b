"""Hook points: named places inside a model where a value can be read and replaced.

A hook point holds plain Python lists of callables and does not use torch's hooks: `torch.compile`
guards on the lists, so a compiled graph is recompiled when a hook is added instead of ignoring it,
and a point without hooks costs one truth test. Names and meanings are those of TransformerLens 4.3,
so code written for it works here. A name that matches nothing and a hook that never fires are
errors.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from train.errors import HookError, nearest
from train.short_repr import short_repr


__all__ = ["Cache", "Hook", "HookPoint", "HookedModule", "Hooks", "NamesFilter", "PointNames"]

Hook = Callable[[Tensor, "HookPoint"], Tensor | None]
NamesFilter = str | Callable[[str], bool] | Iterable[str] | None
Hooks = Iterable[tuple[str | Callable[[str], bool], Hook]]

# Each head's contribution to the residual stream: n_heads times as large as other activations, so
# it is computed and cached only on request.
ON_REQUEST = "hook_result"
# Other short names of the same values, in TransformerLens and in code written for it.
SHORT_ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "query": "q",
    "key": "k",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
# Why a layer may lack a hook point that others have.
NO_RESID_MID = (
    "attention and MLP of a layer read the same stream in this model (parallel residual), so there "
    "is none between them; take hook_resid_pre or hook_attn_out"
)


class HookPoint:
    """An identity function that passes its value to `fwd` hooks and its gradient to `bwd` hooks.

    A hook is called as `hook(tensor, point)`. A returned tensor replaces the value; None keeps it.
    Hooks can keep what they like in `ctx`.
    """

    def __init__(self) -> None:
        self.name = ""
        self.fwd: list[Hook] = []
        self.bwd: list[Hook] = []
        self.ctx: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r}, {len(self.fwd)} fwd, {len(self.bwd)} bwd)"

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.fwd or self.bwd:
            return self._run(tensor)
        return tensor

    @property
    def hooked(self) -> bool:
        """True if the point has hooks, so that an optional value must be computed."""
        return bool(self.fwd or self.bwd)

    def layer(self) -> int:
        """Return the block in which the point is.

        Raises:
            HookError: The point is in no block.
        """
        found = re.match(r"blocks\.(\d+)\.", self.name)
        if found is None:
            raise HookError(f"{self.name} is in no block; points in blocks have a layer")
        return int(found[1])

    def add_hook(self, hook: Hook, dir: str = "fwd", is_permanent: bool = False) -> None:
        """Set a hook that stays until `remove_hooks`, or a permanent one, which stays longer."""
        hook = _called_by_position(hook)
        getattr(self, dir).append(_Permanent(hook) if is_permanent else hook)

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False) -> None:
        """Remove the hooks of a direction, or of both; permanent ones only if it is said."""
        for hooks in [self.fwd, self.bwd] if dir == "both" else [getattr(self, dir)]:
            kept = [] if including_permanent else [h for h in hooks if isinstance(h, _Permanent)]
            hooks[:] = kept

    def clear_context(self) -> None:
        """Empty `ctx`."""
        self.ctx.clear()

    def _run(self, tensor: Tensor) -> Tensor:
        tensor = self._show(tensor, self.fwd)
        if self.bwd and tensor.requires_grad:
            # A view, so that its gradient is that through this point, not through all uses.
            tensor = tensor.view_as(tensor)
            tensor.register_hook(lambda gradient: self._show(gradient, self.bwd))
        return tensor

    def _show(self, tensor: Tensor, hooks: list[Hook]) -> Tensor:
        for hook in tuple(hooks):
            changed = hook(tensor, self)
            if changed is None:
                continue
            if changed.shape != tensor.shape:
                raise HookError(
                    f"a hook at {self.name} returned shape {tuple(changed.shape)} for a value of "
                    f"shape {tuple(tensor.shape)}; return the same shape, or None to keep the value"
                )
            tensor = changed
        return tensor


@dataclass(frozen=True, eq=False)
class _Permanent:
    """A hook that `reset_hooks` leaves."""

    hook: Hook

    def __call__(self, tensor: Tensor, point: HookPoint) -> Tensor | None:
        return self.hook(tensor, point)


def _called_by_position(hook: Callable[..., Tensor | None]) -> Hook:
    """Return a hook that is called as `hook(tensor, point)`.

    TransformerLens calls `f(tensor, hook=point)`. A function with a parameter `hook` that is not
    its second, such as `partial(f, pos=3)` of `def f(z, pos, hook)`, gets the point by that name.
    """
    try:
        parameters = list(inspect.signature(hook).parameters.values())[1:]
    except (TypeError, ValueError):  # a built-in function does not tell its parameters
        return hook
    later = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if "hook" not in [one.name for one in later]:
        return hook
    second = later[0].name == "hook" and later[0].kind is not later[0].KEYWORD_ONLY
    if second or any(one.default is one.empty and one.name != "hook" for one in later):
        return hook
    return lambda tensor, point: hook(tensor, hook=point)


@dataclass(frozen=True)
class PointNames:
    """The names of a model's hook points: its own, and aliases of them."""

    own: tuple[str, ...]
    aliases: Mapping[str, str]

    __repr__ = short_repr

    @cached_property
    def n_layers(self) -> int:
        """Number of blocks with hook points."""
        found = (re.match(r"blocks\.(\d+)\.", name) for name in self.own)
        return max((int(one[1]) + 1 for one in found if one), default=0)

    def resolve(self, key: str | tuple) -> str:
        """Return the own name of the hook point that `key` names.

        A key is an own name such as `"blocks.3.hook_resid_pre"`, an alias, or a short key. Short
        keys are (name, layer) such as `("resid_pre", 3)`, or (name, layer, part) such as
        `("scale", 3, "ln1")`; a negative layer counts from the last. `"embed"` is short for
        `"hook_embed"`.

        Raises:
            HookError: No hook point, or more than one, has that name.
        """
        if isinstance(key, tuple):
            return self._from_short(*key)
        name = self.aliases.get(key, key)
        if name in self.own:
            return name
        if "hook_" not in name:
            return self._from_short(name)
        if name.endswith(".hook_resid_mid") and self._parallel:
            raise HookError(f"no hook point is called {name!r}: {NO_RESID_MID}")
        raise HookError(f"no hook point is called {name!r}{nearest(name, self.own)}")

    def matching(self, wanted: NamesFilter) -> list[str]:
        """Return the own names that a filter selects; None selects all but `attn.hook_result`.

        Raises:
            HookError: The filter matches no hook point.
        """
        if wanted is None:
            return [name for name in self.own if not name.endswith(ON_REQUEST)]
        if isinstance(wanted, str):
            return [self.resolve(wanted)]
        if callable(wanted):
            found = [name for name in self.own if wanted(name)]
            found += [own for alias, own in self.aliases.items() if wanted(alias)]
            if not found:
                raise HookError(
                    f"the names filter matches none of the {len(self.own)} hook points; they are "
                    f"called {self.own[0]}, {self.own[-1]} and so on, see `model.hook_dict`"
                )
            return list(dict.fromkeys(found))
        return list(dict.fromkeys(self.resolve(name) for name in wanted))

    def _from_short(self, short: str, layer: int | None = None, part: str | None = None) -> str:
        short, part, prefix = SHORT_ALIASES.get(short, short), part or "", ""
        if layer is not None:
            if not -self.n_layers <= layer < self.n_layers:
                raise HookError(f"no layer {layer} in a model of {self.n_layers} layers")
            prefix = f"blocks.{layer % self.n_layers}."
        found = [
            name
            for name in self.own
            if name.startswith(prefix or ("hook_", "ln_final."))
            and name.rpartition("hook_")[2] == short
            and name.removeprefix(prefix).startswith(part)
        ]
        asked = ", ".join(repr(one) for one in (short, layer, part) if one not in (None, ""))
        if not found and not part and f"{prefix}hook_{short}" in self.aliases:
            return self.aliases[f"{prefix}hook_{short}"]
        if not found and short == "resid_mid" and self._parallel:
            raise HookError(f"no hook point is called {asked}: {NO_RESID_MID}")
        if not found and layer is None and short in self._short_names:
            raise HookError(f"{asked} is a place in every block; give the layer as well")
        if not found:
            raise HookError(f"no hook point is called {asked}{nearest(short, self._short_names)}")
        if len(found) > 1:
            raise HookError(f"{asked} could be {' or '.join(found)}; name the part as well")
        return found[0]

    @cached_property
    def _parallel(self) -> bool:
        """True if there are blocks, and none has a stream between attention and MLP."""
        return "blocks.0.hook_resid_pre" in self.own and "blocks.0.hook_resid_mid" not in self.own

    @cached_property
    def _short_names(self) -> set[str]:
        return {name.rpartition("hook_")[2] for name in self.own}


class Cache(Mapping[str, Tensor]):
    """Activations of one forward pass by name: `cache["resid_pre", 3]`, `cache["hook_embed"]`.

    The tensors are detached and share memory with the pass; they are not copied.
    """

    def __init__(self, activations: dict[str, Tensor], names: PointNames) -> None:
        self.activations = activations
        self.names = names

    def __getitem__(self, key: str | tuple) -> Tensor:
        name = self.names.resolve(key)
        if name not in self.activations:
            raise HookError(f"{name} exists but was not cached; add it to names_filter")
        return self.activations[name]

    def __contains__(self, key: object) -> bool:
        try:
            return self.names.resolve(key) in self.activations  # type: ignore[arg-type]
        except HookError:
            return False

    def get(self, key, default=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return an activation, or `default` if it was not cached or does not exist."""
        if key not in self:
            return default
        return self[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def __repr__(self) -> str:
        return f"Cache of {len(self)} activations: {', '.join(list(self)[:4])}, ..."


class HookedModule(nn.Module):
    """A module whose `HookPoint` attributes, at any depth, can be reached by name.

    Set hooks on the module itself, not on `torch.compile(module)`; the methods below run the
    uncompiled forward pass.

    Examples:
        >>> tokens = model.to_tokens("the capital of runethi is")
        >>> def without_attention(value, point):
        ...     return torch.zeros_like(value)
        ...
        >>> hooks = [("blocks.0.hook_attn_out", without_attention)]
        >>> changed = model.run_with_hooks(tokens, fwd_hooks=hooks)
        >>> model.to_string(changed[0, -1].argmax().view(1)) == "koreskul"
        False
    """

    hook_dict: dict[str, HookPoint]
    hook_names: PointNames

    def name_hook_points(self, aliases: Mapping[str, str]) -> None:
        """Name every hook point by its path. Call this when the module is complete."""
        self.hook_dict = {}
        for path, module in self.named_modules():
            for attribute, point in vars(module).items():
                if isinstance(point, HookPoint):
                    point.name = f"{path}.{attribute}" if path else attribute
                    self.hook_dict[point.name] = point
        known = {alias: own for alias, own in aliases.items() if own in self.hook_dict}
        self.hook_names = PointNames(tuple(self.hook_dict), known)

    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        *,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> AbstractContextManager["HookedModule"]:
        """Set hooks for the duration of a `with` block; exactly these are removed at its end.

        Args:
            fwd_hooks: Pairs of a name (or a predicate on names) and `hook(value, point)`.
            bwd_hooks: The same for gradients; run `backward` inside the block.
            reset_hooks_end: False leaves the hooks where they are.
            clear_contexts: Empty the `ctx` of every point at the end.

        Raises:
            HookError: A name matches no hook point, or the block ended without an error and a hook
                never fired.
        """
        placed = [*self._located(fwd_hooks, "fwd"), *self._located(bwd_hooks, "bwd")]
        return self._while_placed(placed, stay=not reset_hooks_end, clear=clear_contexts)

    def run_with_hooks(self, *inputs: Tensor, fwd_hooks: Hooks = (), bwd_hooks: Hooks = ()):
        """Run one forward pass with hooks.

        Gradient hooks are removed as well when it returns; to run `backward`, use `hooks`.
        """
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(*inputs)

    def run_with_cache(
        self, *inputs: Tensor, names_filter: NamesFilter = None
    ) -> tuple[Tensor, Cache]:
        """Run one forward pass and cache the activations that `names_filter` selects.

        The filter is a name, several names, or a predicate. None selects every hook point but
        `attn.hook_result`, which is n_heads times as large as the others.
        """
        found: dict[str, Tensor] = {}

        def keep(tensor: Tensor, point: HookPoint) -> None:
            found[point.name] = tensor.detach()

        names = self.hook_names.matching(names_filter)
        with self.hooks([(name, keep) for name in names]):
            output = self(*inputs)
        return output, Cache(found, self.hook_names)

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: Hook,
        dir: str = "fwd",
        is_permanent: bool = False,
    ) -> None:
        """Set a hook that stays until `reset_hooks`; it is not checked whether it fires.

        A permanent one stays until `reset_hooks(including_permanent=True)`.
        """
        for own in self.hook_names.matching(name):
            self.hook_dict[own].add_hook(hook, dir, is_permanent)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: str = "both",
        including_permanent: bool = False,
    ) -> None:
        """Remove every hook that is not permanent from every point, and empty every `ctx`."""
        for point in self.hook_dict.values():
            point.remove_hooks(direction, including_permanent)
            if clear_contexts:
                point.clear_context()

    def _located(self, hooks: Hooks, direction: str) -> list["_Placed"]:
        pairs = list(hooks)
        # One hook is often set at every point, and its signature is read once.
        called = {id(hook): _called_by_position(hook) for _, hook in pairs}
        return [
            _Placed(
                called[id(hook)],
                f"{direction} hook at {name}",
                getattr(self.hook_dict[name], direction),
            )
            for wanted, hook in pairs
            for name in self.hook_names.matching(wanted)
        ]

    @contextmanager
    def _while_placed(
        self, placed: list["_Placed"], *, stay: bool, clear: bool
    ) -> Iterator["HookedModule"]:
        try:
            for hook in placed:
                hook.where.append(hook)
            yield self
        finally:
            if not stay:
                try:
                    _take_away(placed)
                # An interrupt can hit the removal itself: without this, 23 of 7,500 left a hook
                # behind.
                except KeyboardInterrupt:
                    _take_away(placed)
                    raise
            for point in self.hook_dict.values() if clear else ():
                point.clear_context()
        silent = [hook.place for hook in placed if not hook.fired]
        if silent:
            raise HookError(
                f"{len(silent)} of {len(placed)} hooks never fired, the first is the {silent[0]}; "
                "run the model (and backward, for gradients) inside the block"
            )


@dataclass(eq=False)
class _Placed:
    """A hook, the list that contains it, and whether it has fired."""

    hook: Hook
    place: str
    where: list[Hook]
    fired: bool = False

    def __call__(self, tensor: Tensor, point: HookPoint) -> Tensor | None:
        self.fired = True
        return self.hook(tensor, point)


def _take_away(placed: Iterable[_Placed]) -> None:
    for hook in placed:
        hook.where[:] = [other for other in hook.where if other is not hook]
