"""Control for patching: the same patches in an untrained model.

Methods that find structure in trained models often find it in untrained ones too (Heap et al. 2025,
https://arxiv.org/abs/2501.17727). The control runs the patches of a result in a model of the same
architecture with newly initialised weights, on the same prompts. It divides the change of the score
by the trained model's clean-corrupt difference. An untrained model should give values near 0.
"""

from dataclasses import replace

import torch

from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, layers_around, parse
from interp.errors import EffectsError, ModelError
from interp.metrics import METRICS, Metric
from interp.patching.effects import Effects
from interp.patching.engine import MEMORY
from interp.patching.paired_runs import DIRECTIONS, PairedRuns
from train import progress as bars
from train.model import GPT, init_gpt
from train.progress import Progress


__all__ = ["untrained_control"]


def untrained_control(
    model: HookedModel,
    behaviour: Behaviour,
    effects: Effects,
    *,
    metric: Metric | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """Run the patches of `effects` in an untrained model, and return effects with `control` set.

    Costs as many patches as the effects have.

    Args:
        model: The model that the effects were measured on. Only its architecture is used.
        behaviour: The behaviour that they were measured on.
        effects: Effects of a sweep or of sets of components, on one or several metrics.
        metric: The metric of the effects, if it is not one of `metrics.METRICS`.
        memory: Bytes that may be used above the weights.
        seed: Seed of the new weights.
        progress: Function that is told how many patches are done.

    Raises:
        ModelError: The model is not a GPT, so that it cannot be initialised anew.
        EffectsError: The effects are of paths, of noise, of other prompts, or on an unknown metric.

    Examples:
        >>> effects = patching.heads(model, ioi)
        >>> effects = patching.untrained_control(model, ioi, effects)
        >>> effects["L0H1"] > 0.5, effects.control.abs().max().item() < 0.1
        (True, True)
    """
    if not isinstance(model, GPT):
        raise ModelError(f"a {type(model).__name__} cannot be started anew; a GPT can")
    if effects.through:
        raise EffectsError("these are effects of paths; an untrained control is made of patches")
    if effects.direction not in DIRECTIONS:
        raise EffectsError(
            f"these effects are of {effects.direction}; a control is made of patches"
        )
    if effects.provenance.behaviour_sha256 != behaviour.sha256:
        raise EffectsError(
            f"the effects are of behaviour {effects.provenance.behaviour!r} with other prompts "
            f"than {behaviour.name!r} has; give the behaviour that they were measured on"
        )
    fresh = init_gpt(model.cfg, seed).eval().to(model.device)
    both = (effects, *effects.also)
    patches = [_patch(name, effects, model.cfg.n_layers) for name in effects.names]
    runs = PairedRuns.of(
        fresh,
        behaviour,
        metric=[_metric(one, behaviour, metric) for one in both],
        direction=effects.direction,
        memory=memory,
        check=False,
    )
    with bars.shown(behaviour.name, progress) as told:
        found = runs.patching(patches)(progress=told)
    moved = (found.scores - found.start[:, None]).mean(dim=-1)
    first, *also = [
        replace(one, control=_share(moved[i], one).reshape(one.values.shape))
        for i, one in enumerate(both)
    ]
    return replace(first, also=tuple(also))


def _share(moved: torch.Tensor, effects: Effects) -> torch.Tensor:
    """Divide score changes by the trained model's difference in the same direction."""
    whole = effects.clean - effects.corrupt
    return (moved / (whole if effects.direction == "denoising" else -whole)).float()


def _patch(name: str, effects: Effects, n_layers: int) -> list[Component]:
    """Return the components of a named patch, in all layers of its window."""
    places = [parse(one) for one in name.split(" + ")]
    if effects.window == 1:
        return places
    (place,) = places
    layers = layers_around(place.layer, effects.window, n_layers)
    return [replace(place, layer=layer) for layer in layers]


def _metric(effects: Effects, behaviour: Behaviour, given: Metric | None) -> Metric:
    known = {made.name: made for made in (make(behaviour) for make in METRICS.values())}
    if given is not None:
        known[given.name] = given
    if effects.metric not in known:
        raise EffectsError(f"the effects are on {effects.metric!r}; give that metric")
    return known[effects.metric]
