"""Activation patching sweeps: which activations carry a behaviour.

*Denoising* runs the corrupt prompts, replaces one activation by its value on the clean prompts, and
measures how much of the behaviour comes back; it finds components that suffice. *Noising* patches
clean prompts with corrupt values; it finds components that are needed. Both are exact: the engine
(`interp.patching.engine`) recomputes everything that a patch can change, and only that.

Every sweep takes the same options: `positions` ("each" for one at a time, "together", or a list of
positions or groups of positions), `metric` (one or several, measured in the same passes),
`direction`, `memory` (bytes above the weights) and `progress`. Every sweep raises:

    CapabilityError   the model does not do the behaviour
    ContrastError     the model scores clean and corrupt prompts alike
    ModelError        a layer or head does not exist in the model
    BehaviourError    an option has an unknown value, a position lies outside the prompts, or no
                      patch can reach a position that the metric reads
    BudgetError       not even one patch fits into `memory`

The defaults (denoising, symmetric token replacement, the logit difference as the metric, a window
of one layer) follow Zhang & Nanda 2023, https://arxiv.org/abs/2309.16042.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Unpack

from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, heads_at, layers_around, parse_all
from interp.errors import BehaviourError, ModelError
from interp.patching.effects import Effects
from interp.patching.paired_runs import (
    DIRECTIONS,
    SweepLayout,
    SweepOptions,
    one_of,
    refuse_misuse,
    sweep,
)
from train.errors import nearest


__all__ = [
    "DIRECTIONS",
    "Positions",
    "attention",
    "heads",
    "keys",
    "mlps",
    "neurons",
    "patterns",
    "queries",
    "residual",
    "together",
    "values",
]

Positions = str | int | Sequence[int | Sequence[int]]
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


def residual(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    site: str = "resid_pre",
    positions: Positions = "each",
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch the residual stream of each layer, one position at a time: Effects over (layer, pos).

    `site` is resid_pre (the input of the layer), resid_mid (after its attention) or resid_post
    (after the layer).

    Examples:
        >>> effects = patching.residual(model, ioi)
        >>> effects.axes, tuple(effects.values.shape)
        (('layer', 'pos'), (2, 15))
        >>> sorted(effects.top(2))  # where the prompts differ, and where the metric reads
        ['L0.resid_pre@10', 'L1.resid_pre@14']
    """
    one_of("site", site, RESIDUAL)
    plan = _by_layer(model, behaviour, site, positions)
    return sweep(model, behaviour, *plan, **options)


def attention(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: Positions = "together",
    window: int = 1,
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch the output of attention, all heads of a layer together: Effects over (layer[, pos]).

    `window` layers around the named one are patched together. Wide windows inflate peaks.

    Examples:
        >>> effects = patching.attention(model, ioi)
        >>> effects.top(1), round(effects["L0.attn"], 1)
        ([L0.attn 1], 1.0)
    """
    plan = _by_layer(model, behaviour, "attn", positions, window)
    return sweep(model, behaviour, *plan, **options)


def mlps(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: Positions = "together",
    window: int = 1,
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch the output of one MLP at a time, with the options of `attention`.

    Examples:
        >>> effects = patching.mlps(model, ioi)
        >>> effects.names, effects["L0.mlp"] > 0.5
        (['L0.mlp', 'L1.mlp'], True)
    """
    plan = _by_layer(model, behaviour, "mlp", positions, window)
    return sweep(model, behaviour, *plan, **options)


def heads(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: Positions = "together",
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch the output of one head at a time (`hook_z`): Effects over (layer, head[, pos]).

    Examples:
        >>> effects = patching.heads(model, ioi)
        >>> effects.top(2), round(effects["L0H1"], 1)
        ([L0H1 0.907, L0H3 0.0701], 0.9)
        >>> low, high = effects.interval("L0H1")
        >>> low < effects["L0H1"] < high
        True
    """
    plan = _by_head(model, behaviour, "head", positions)
    return sweep(model, behaviour, *plan, **options)


def queries(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: Positions = "together",
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch the query of one head at a time: Effects over (layer, head[, pos]).

    In models with rotary positions the value before rotation is patched.

    Examples:
        >>> effects = patching.queries(model, ioi)
        >>> effects.axes, effects.values.abs().max().item() < 0.1
        (('layer', 'head'), True)
    """
    plan = _by_head(model, behaviour, "q", positions)
    return sweep(model, behaviour, *plan, **options)


def keys(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: Positions = "together",
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch the key of one head at a time: Effects over (layer, key-value head[, pos]).

    In models with rotary positions the value before rotation is patched. Query heads that share a
    key are patched together.

    Examples:
        >>> effects = patching.keys(model, ioi)
        >>> effects.axes, effects.values.abs().max().item() < 0.1
        (('layer', 'head'), True)
    """
    plan = _by_head(model, behaviour, "k", positions)
    return sweep(model, behaviour, *plan, **options)


def values(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: Positions = "together",
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch the value of one head at a time: Effects over (layer, key-value head[, pos]).

    Query heads that share a value are patched together.

    Examples:
        >>> effects = patching.values(model, ioi)
        >>> effects.top(2), round(effects["L0H1.v"], 1)
        ([L0H1.v 0.907, L0H3.v 0.074], 0.9)
    """
    plan = _by_head(model, behaviour, "v", positions)
    return sweep(model, behaviour, *plan, **options)


def patterns(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: Positions = "together",
    keys: bool = False,
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch the attention pattern of one head at a time: Effects over (layer, head[, pos]).

    `positions` are query positions. With `keys` every key position is patched on its own, and the
    Effects have a last axis `key`. Patched rows are not renormalised to sum to 1.

    Examples:
        >>> effects = patching.patterns(model, ioi, positions=[-1], keys=True)
        >>> effects.axes, tuple(effects.values.shape)
        (('layer', 'head', 'pos', 'key'), (2, 4, 1, 15))
    """
    plan = _by_head(model, behaviour, "pattern", positions, keys=keys)
    return sweep(model, behaviour, *plan, **options)


def neurons(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = "together",
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch one neuron at a time, after its activation: Effects over (layer, neuron[, pos]).

    Costs as many patches as there are neurons; `layers` restricts the sweep to some layers.

    Examples:
        >>> effects = patching.neurons(model, ioi, layers=[1])
        >>> effects.axes, tuple(effects.values.shape)
        (('layer', 'neuron'), (1, 512))
    """
    refuse_misuse(model, behaviour)
    chosen = range(model.cfg.n_layers) if layers is None else list(layers)
    if not chosen:
        raise ModelError("no layer was given; leave `layers` out for all of them")
    groups, pos_axis = _groups(positions, behaviour)
    neurons = range(model.cfg.d_mlp)
    places = [
        Component("neuron", layer, neuron=neuron, pos=pos)
        for layer, neuron, pos in product(chosen, neurons, groups)
    ]
    shape = (len(chosen), len(neurons), *([len(groups)] if pos_axis else []))
    layout = SweepLayout("neuron", ("layer", "neuron", *pos_axis), shape, _names(places))
    return sweep(model, behaviour, [(place,) for place in places], layout, **options)


def together(
    model: HookedModel,
    behaviour: Behaviour,
    patches: Sequence[Sequence[Component | str] | Component | str] | Component | str,
    **options: Unpack[SweepOptions],
) -> Effects:
    """Patch sets of components, each set at once: Effects over (patch,).

    The sets are named like "L0H2 + L1.mlp@3"; a name on its own is a set of one.

    Examples:
        >>> effects = patching.together(model, ioi, [["L0H1", "L0H3"], ["L1.mlp"]])
        >>> effects.names
        ['L0H1 + L0H3', 'L1.mlp']
        >>> round(effects["L0H1 + L0H3"], 1)
        1.0
    """
    refuse_misuse(model, behaviour)
    given = [patches] if isinstance(patches, Component | str) else patches
    sets = [parse_all(each) for each in given]
    if not sets:
        raise ModelError("no patch was given; each is a list of places such as ['L0H2', 'L1.mlp']")
    names = tuple(" + ".join(map(str, one)) for one in sets)
    layout = SweepLayout("several", ("patch",), (len(sets),), names)
    return sweep(model, behaviour, sets, layout, **options)


# --- which components a sweep patches -------------------------------------------------------------


def _by_layer(
    model: HookedModel,
    behaviour: Behaviour,
    site: str,
    positions: Positions,
    window: int = 1,
) -> tuple[list[list[Component]], SweepLayout]:
    """Return the patches of a site by layer (and position), and their layout."""
    refuse_misuse(model, behaviour)
    n_layers = model.cfg.n_layers
    if not 1 <= window <= n_layers:
        raise ModelError(f"a window of {window} layers was asked of a model that has {n_layers}")
    groups, pos_axis = _groups(positions, behaviour)
    places = [Component(site, layer, pos=pos) for layer, pos in product(range(n_layers), groups)]
    patches = [
        [
            Component(site, layer, pos=place.pos)
            for layer in layers_around(place.layer, window, n_layers)
        ]
        for place in places
    ]
    shape = (n_layers, *([len(groups)] if pos_axis else []))
    layout = SweepLayout(site, ("layer", *pos_axis), shape, _names(places), window)
    return patches, layout


def _by_head(
    model: HookedModel,
    behaviour: Behaviour,
    site: str,
    positions: Positions,
    *,
    keys: bool = False,
) -> tuple[list[list[Component]], SweepLayout]:
    """Return the patches of a site by layer and head (and position, and key), and their layout."""
    refuse_misuse(model, behaviour)
    cfg = model.cfg
    heads = range(heads_at(cfg, site))
    groups, pos_axis = _groups(positions, behaviour)
    looked_at = list(range(behaviour.n_pos)) if keys else [None]
    places = [
        Component(site, layer, head=head, pos=pos, key=key)
        for layer, head, pos, key in product(range(cfg.n_layers), heads, groups, looked_at)
    ]
    lengths = [cfg.n_layers, len(heads)]
    lengths += [len(groups)] if pos_axis else []
    lengths += [len(looked_at)] if keys else []
    axes = ("layer", "head", *pos_axis, *(["key"] if keys else []))
    layout = SweepLayout(site, axes, tuple(lengths), _names(places))
    return [[place] for place in places], layout


def _groups(
    positions: Positions, behaviour: Behaviour
) -> tuple[Sequence[int | tuple[int, ...] | None], tuple[str, ...]]:
    """Return the positions (or groups) to patch one at a time, and the axis that they form.

    Raises:
        BehaviourError: An unknown word, a position outside the prompts, or no position.
    """
    if positions == "together":
        return [None], ()
    if positions == "each":
        return list(range(behaviour.n_pos)), ("pos",)
    if isinstance(positions, str):
        known = ("each", "together")
        raise BehaviourError(
            f"no positions are called {positions!r}{nearest(positions, known)}; give 'each', "
            "'together' or a list"
        )
    listed = [positions] if isinstance(positions, int) else positions
    found = list(dict.fromkeys(_resolved(listed, behaviour.n_pos)))
    if not found:
        raise BehaviourError("an empty list of positions patches nothing; leave it out for all")
    return found, ("pos",)


def _resolved(
    positions: Sequence[int | Sequence[int]], n_pos: int
) -> Iterator[int | tuple[int, ...]]:
    """Yield positions counted from 0; negative ones count from the end."""
    for given in positions:
        group = (given,) if isinstance(given, int) else tuple(given)
        outside = [pos for pos in group if not -n_pos <= pos < n_pos]
        if outside or not group:
            raise BehaviourError(
                f"position {outside[0] if outside else 'none'} was asked of prompts of {n_pos} "
                "tokens"
            )
        counted = tuple(sorted({pos % n_pos for pos in group}))
        yield counted[0] if isinstance(given, int) else counted


def _names(places: Sequence[Component]) -> tuple[str, ...]:
    return tuple(map(str, places))
