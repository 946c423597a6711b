"""Contrast check: find components for which an effect of 0 says nothing.

Patching exchanges a component's value for its value on other prompts, so it can only show what
*varies* between the two prompts. If the value does not vary, or no part of it that later components
read, the effect is 0 whatever the component does. On 129 compiled programs, patching between
inputs of equal length misses 121 of the 359 components that compute (a component that reads the
length or the BOS token has the same value on both inputs). Removing a component needs no other
prompts and tells such a 0 from a real one.

The result is one verdict per component, see `interp.patching.contrast_result`. Apart from rounding,
the check is exact.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.components import Component, HookedModel, device_of, parse
from interp.errors import BehaviourError, UninformativeWarning
from interp.metrics import Metric
from interp.patching import engine
from interp.patching.contrast_result import UNINFORMATIVE, ContrastCheck
from interp.patching.engine import Patched
from interp.results import provenance
from train.progress import Progress


__all__ = ["exchanged", "informative", "largest_change", "removed", "unmoved", "warn_unmoved"]

# EQUAL: largest relative difference of values that count as equal. TOLERANCE: largest change of the
# metric that counts as none. On the compiled programs the largest effect of rounding is 6e-8 and
# the smallest real effect 3.2e-3.
EQUAL, TOLERANCE = 1e-5, 1e-4
Hook = tuple[str, Callable[..., Tensor | None]]


def informative(
    model: HookedModel,
    clean: Int[Tensor, "prompt pos"],
    corrupt: Int[Tensor, "source_prompt source_pos"],
    places: Sequence[Component],
    *,
    metric: Metric | None = None,
    progress: Progress | None = None,
) -> ContrastCheck:
    """Decide for each component whether patching between the paired prompts can show its effect.

    Costs two passes over the prompts per component, and a third for each component that seems to
    have no effect. Warns with an `UninformativeWarning` if there are uninformative components.

    Args:
        model: A hooked model.
        clean: The prompts that are patched.
        corrupt: The prompts that the values come from, row by row.
        places: Components to judge.
        metric: Metric of the output; None for the largest change of any logit at any position.
        progress: Function that is told how many patches are done.

    Raises:
        BehaviourError: The two sets of prompts differ in number or length.

    Examples:
        >>> places = [components.parse(name) for name in ("L0H1", "L1.mlp")]
        >>> contrast = patching.informative(model, ioi.clean, ioi.corrupt, places)
        >>> contrast.places, contrast.verdicts
        (('L0H1', 'L1.mlp'), ('shown', 'shown'))
    """
    if clean.shape != corrupt.shape:
        raise BehaviourError(
            f"clean prompts of shape {tuple(clean.shape)} and corrupt ones of "
            f"{tuple(corrupt.shape)} make no pairs; make them equally many and equally long"
        )
    metric = metric or largest_change(model, clean)
    here, there = _values(model, clean, places), _values(model, corrupt, places)
    zeros = {name: torch.zeros_like(value) for name, value in here.items()}
    exchange = _swept(model, clean, places, there, metric, progress)
    removal = _swept(model, clean, places, zeros, metric, progress)
    output = _largest(engine.unpatched(model, corrupt, [metric])[0] - exchange.start[0])
    columns = (exchange.moved, removal.moved, _changes(exchange), _changes(removal))
    rows = zip(*(one.tolist() for one in columns), strict=True)
    verdicts = [_verdict(*row, varies=output > TOLERANCE) for row in rows]
    verdicts = _absorbed(model, clean, places, verdicts, there, here)
    found = ContrastCheck(
        places=tuple(map(str, places)),
        verdicts=tuple(verdicts),
        moved=tuple(exchange.moved.tolist()),
        exchanged=tuple(_changes(exchange).tolist()),
        removed=tuple(_changes(removal).tolist()),
        output=output,
        varies=output > TOLERANCE,
        metric=metric.name,
        unit=metric.unit,
        n=len(clean),
        provenance=provenance(model, None, seed=0),
    )
    if found.uninformative:
        warnings.warn(str(found), UninformativeWarning, stacklevel=2)
    return found


def unmoved(names: Sequence[str], moved: Float[Tensor, " place"]) -> list[str]:
    """Return the names of patches whose values did not differ between the runs, except by rounding.

    Args:
        names: Names of the patches.
        moved: For each patch, the largest difference between the value patched in and the value
            replaced.
    """
    # Compared with the largest difference at the same site, because scales differ: a pattern moves
    # by less than 1, a residual stream by hundreds.
    largest: dict[str, float] = {}
    sites = ["+".join(parse(one).site for one in name.split(" + ")) for name in names]
    for site, by in zip(sites, moved.tolist(), strict=True):
        largest[site] = max(largest.get(site, 0.0), by if isfinite(by) else 0.0)
    pairs = zip(names, sites, moved.tolist(), strict=True)
    return [name for name, site, by in pairs if by <= EQUAL * largest[site]]


def warn_unmoved(what: str, still: Sequence[str], of: int) -> None:
    """Warn that the prompts of a behaviour are uninformative about `still`, out of `of` patches."""
    if not still:
        return
    shown = ", ".join(still[:8]) + (f" and {len(still) - 8} more" if len(still) > 8 else "")
    warnings.warn(
        f"the contrast of {what!r} is uninformative about {len(still)} of {of} places: {shown} "
        "have the same value in both prompts of every pair, so an effect of 0 there says nothing; "
        "use prompts that vary what they read, or ablation",
        UninformativeWarning,
        stacklevel=6,
    )


def exchanged(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    source: Int[Tensor, "prompt pos"],
    places: Sequence[Component],
    *,
    metric: Metric | None = None,
) -> Float[Tensor, " place"]:
    """Return the largest change of the metric on any prompt, per component patched from `source`.

    The change has no sign.
    """
    metric = metric or largest_change(model, tokens)
    return _changes(_swept(model, tokens, places, _values(model, source, places), metric))


def removed(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    places: Sequence[Component],
    *,
    metric: Metric | None = None,
) -> Float[Tensor, " place"]:
    """Return the largest change of the metric on any prompt, per component set to zero.

    The change has no sign.

    Examples:
        >>> places = [components.parse(name) for name in ("L0H1", "L1.mlp")]
        >>> tuple(patching.removed(model, ioi.clean, places).shape)
        (2,)
    """
    metric = metric or largest_change(model, tokens)
    zeros = {name: torch.zeros_like(v) for name, v in _values(model, tokens, places).items()}
    return _changes(_swept(model, tokens, places, zeros, metric))


@torch.inference_mode()
def largest_change(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    *,
    positions: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> Metric:
    """Return the metric "largest absolute change of any logit relative to the unpatched run".

    Costs one forward pass. The metric is 0 on the unpatched run and never negative.

    Args:
        model: The model whose unpatched logits are the reference.
        tokens: The prompts; the metric is valid for these only.
        positions: Positions that the metric reads; None for all.
        columns: Columns of the vocabulary that it reads; None for all.

    Examples:
        >>> metric = patching.largest_change(model, ioi.clean)
        >>> metric.of_logits(model(ioi.clean)).max().item()
        0.0
        >>> metric.of_logits(model(ioi.corrupt)).max().item() > 1
        True
    """
    reads = tuple(range(tokens.shape[1]) if positions is None else positions)
    chosen = None if columns is None else torch.tensor(columns)
    logits = model(tokens.to(device_of(model)))[:, reads]
    reference = logits if chosen is None else logits[..., chosen.to(logits.device)]

    def score(logits: Tensor, prompt: Tensor) -> Tensor:
        return (logits - reference[prompt]).abs().amax(dim=(1, 2))

    return Metric("largest change of a logit", "logits", score, positions=reads, columns=chosen)


# --- passes --------------------------------------------------------------------------------------


@torch.inference_mode()
def _values(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    places: Sequence[Component],
    first: Sequence[Hook] = (),
) -> dict[str, Tensor]:
    """Return the values at the components' hook points, after the hooks in `first` have acted."""
    found: dict[str, Tensor] = {}

    def keeping(name: str) -> Hook:
        return name, lambda value, hook: found.__setitem__(name, value.clone())

    keep = [keeping(name) for name in dict.fromkeys(place.hook for place in places)]
    model.run_with_hooks(tokens.to(device_of(model)), fwd_hooks=[*first, *keep])
    return found


def _swept(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    places: Sequence[Component],
    source: Mapping[str, Tensor],
    metric: Metric,
    progress: Progress | None = None,
) -> Patched:
    patches = [[place] for place in places]
    tokens = tokens.to(device_of(model))
    found = engine.scores(model, tokens, patches, source, [metric], progress=progress)
    if not found.done.all():
        # A verdict needs all patches of both sweeps.
        raise KeyboardInterrupt
    return found


def _changes(patched: Patched) -> Float[Tensor, " place"]:
    """Return the largest absolute change over prompts, per patch."""
    return (patched.scores[0] - patched.start[0]).abs().amax(dim=1)


def _replacing(place: Component, source: Tensor) -> Hook:
    def replace(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[place.index] = source[place.index]
        return value

    return place.hook, replace


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


# --- verdicts ------------------------------------------------------------------------------------


def _verdict(
    moved: float, scale: float, by_exchange: float, by_removal: float, *, varies: bool
) -> str:
    if by_exchange > TOLERANCE:
        return "shown"
    if moved <= EQUAL * scale:
        return "constant" if scale > 0 else "silent"
    return "idle" if varies and by_removal <= TOLERANCE else "unread"


@torch.inference_mode()
def _absorbed(
    model: HookedModel,
    clean: Int[Tensor, "prompt pos"],
    places: Sequence[Component],
    verdicts: list[str],
    there: Mapping[str, Tensor],
    here: Mapping[str, Tensor],
) -> list[str]:
    """Change the verdict "idle" to "absorbed" if the component reaches an uninformative one.

    Components are visited from last to first, so that a component that reaches an absorbed one is
    absorbed as well.
    """
    verdicts = list(verdicts)
    for number in reversed(range(len(places))):
        if verdicts[number] != "idle":
            continue
        place = places[number]
        after = _values(model, clean, places, first=[_replacing(place, there[place.hook])])
        reached = {
            verdict
            for other, verdict in zip(places, verdicts, strict=True)
            if other != place and _differ(after[other.hook], here[other.hook], other)
        }
        if reached & set(UNINFORMATIVE):
            verdicts[number] = "absorbed"
    return verdicts


def _differ(one: Tensor, other: Tensor, place: Component) -> bool:
    difference = _largest(one[place.index] - other[place.index])
    return difference > EQUAL * _largest(other[place.index])
