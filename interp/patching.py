"""Activation patching: which activations carry a behaviour.

Run the corrupt prompts, replace one activation by its value on the clean prompts, and measure how
much of the behaviour comes back (*denoising*: finds what suffices). The other way round, clean
prompts patched with corrupt values (*noising*), finds what is needed. Both are exact: one full
forward pass a place, in which the prompts of the behaviour are the batch.

Why denoising is the default, why tokens are replaced symmetrically and why the score is a logit
difference: Zhang & Nanda 2023, https://arxiv.org/abs/2309.16042.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from interp import behaviours
from interp.behaviours import Behaviour
from interp.components import HookedModel, Place, device_of
from interp.effects import Effects, provenance
from interp.errors import BehaviourError, ContrastError
from interp.intervals import ratio_interval
from train.errors import nearest


__all__ = ["DIRECTIONS", "Progress", "attention", "heads", "mlps", "residual"]

DIRECTIONS = ("denoising", "noising")
# What was done, how much of it, out of how much.
Progress = Callable[[str, int, int | None], None]


def heads(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    direction: str = "denoising",
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """Patch the output of one head at a time (`hook_z`), at every position.

    Costs layer x head + 3 forward passes over the behaviour's prompts.

    Returns:
        Effects over (layer, head).

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: The model scores clean and corrupt prompts alike.
    """
    places = [
        Place("head", layer, head=head)
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    ]
    return _sweep(model, behaviour, places, ("layer", "head"), direction, seed, progress)


def residual(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    direction: str = "denoising",
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """Patch the residual stream entering each layer, one position at a time.

    Costs layer x pos + 3 forward passes over the behaviour's prompts.

    Returns:
        Effects over (layer, pos). Raises as `heads` does.
    """
    places = _at_positions("resid_pre", model, behaviour)
    return _sweep(model, behaviour, places, ("layer", "pos"), direction, seed, progress)


def mlps(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: str = "together",
    direction: str = "denoising",
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """Patch the output of one MLP at a time.

    Args:
        model: A hooked model, from `hooked.load`.
        behaviour: Its clean and corrupt prompts are the two runs.
        positions: "together", or "each" for one position at a time.
        direction: "denoising" or "noising".
        seed: Of the bootstrap.
        progress: Told how many places are done.

    Returns:
        Effects over (layer,) or (layer, pos). Raises as `heads` does.
    """
    return _by_layer("mlp", model, behaviour, positions, direction, seed, progress)


def attention(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: str = "together",
    direction: str = "denoising",
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """Patch the output of one attention layer, all heads together; otherwise as `mlps`."""
    return _by_layer("attn", model, behaviour, positions, direction, seed, progress)


def _by_layer(
    site: str,
    model: HookedModel,
    behaviour: Behaviour,
    positions: str,
    direction: str,
    seed: int,
    progress: Progress | None,
) -> Effects:
    _one_of("positions", positions, ("together", "each"))
    if positions == "each":
        places = _at_positions(site, model, behaviour)
        return _sweep(model, behaviour, places, ("layer", "pos"), direction, seed, progress)
    places = [Place(site, layer) for layer in range(model.cfg.n_layers)]
    return _sweep(model, behaviour, places, ("layer",), direction, seed, progress)


def _at_positions(site: str, model: HookedModel, behaviour: Behaviour) -> list[Place]:
    return [
        Place(site, layer, pos=pos)
        for layer in range(model.cfg.n_layers)
        for pos in range(behaviour.n_pos)
    ]


@dataclass(frozen=True, eq=False)
class _Contrast:
    """The two unpatched runs: scores of both, and what flows from one into the other."""

    tokens: Int[Tensor, "prompt pos"]
    source: dict[str, Tensor]
    clean: Float[np.ndarray, " prompt"]
    corrupt: Float[np.ndarray, " prompt"]
    start: Float[np.ndarray, " prompt"]
    goal: Float[np.ndarray, " prompt"]


@torch.inference_mode()
def _sweep(
    model: HookedModel,
    behaviour: Behaviour,
    places: Sequence[Place],
    axes: tuple[str, ...],
    direction: str,
    seed: int,
    progress: Progress | None,
) -> Effects:
    """Patch place after place; `places` are all combinations of `axes`, in row-major order."""
    _one_of("direction", direction, DIRECTIONS)
    behaviours.check(model, behaviour)
    contrast = _contrast(model, behaviour, places, direction)
    moved = []
    for done, place in enumerate(places):
        if progress:
            progress("patching", done, len(places))
        moved.append(_patched(model, behaviour, contrast, place) - contrast.start)
    if progress:
        progress("patching", len(places), len(places))
    shape = [1 + max(getattr(place, axis) for place in places) for axis in axes]
    part, whole = np.stack(moved).reshape(*shape, -1), contrast.goal - contrast.start
    prompts = behaviour.clean.unique(dim=0, return_inverse=True)[1].numpy()
    bounds = ratio_interval(_by_prompt(part, prompts), _by_prompt(whole, prompts), seed=seed)
    return Effects(
        site=places[0].site,
        axes=axes,
        values=_tensor(part.mean(axis=-1) / whole.mean()),
        low=None if bounds is None else _tensor(bounds[0]),
        high=None if bounds is None else _tensor(bounds[1]),
        clean=float(contrast.clean.mean()),
        corrupt=float(contrast.corrupt.mean()),
        n_prompts=int(prompts.max()) + 1,
        direction=direction,
        provenance=provenance(model, behaviour, seed=seed),
        pos_labels=_labels(model, behaviour) if "pos" in axes else (),
    )


def _by_prompt(
    scores: Float[np.ndarray, "*places row"], prompts: Int64[np.ndarray, " row"]
) -> Float[np.ndarray, "*places prompt"]:
    """Sums over the rows of each distinct prompt: beside many foils it is drawn as one."""
    return scores @ (prompts[:, None] == np.arange(prompts.max() + 1)).astype(scores.dtype)


def _contrast(
    model: HookedModel, behaviour: Behaviour, places: Sequence[Place], direction: str
) -> _Contrast:
    device = device_of(model)
    hooks = list(dict.fromkeys(place.hook for place in places))
    clean, corrupt = behaviour.clean.to(device), behaviour.corrupt.to(device)
    there, here = (clean, corrupt) if direction == "denoising" else (corrupt, clean)
    logits, cache = model.run_with_cache(there, names_filter=hooks)
    goal, start = _scores(behaviour, logits), _scores(behaviour, model(here))
    scores = (goal, start) if direction == "denoising" else (start, goal)
    if abs(goal.mean() - start.mean()) < 1e-6:
        raise ContrastError(
            f"behaviour {behaviour.name!r} scores {scores[0].mean():.3g} on clean and "
            f"{scores[1].mean():.3g} on corrupt prompts; patching needs prompts that the model "
            "tells apart"
        )
    source = {hook: cache[hook] for hook in hooks}
    return _Contrast(here, source, clean=scores[0], corrupt=scores[1], start=start, goal=goal)


def _patched(
    model: HookedModel, behaviour: Behaviour, contrast: _Contrast, place: Place
) -> Float[np.ndarray, " prompt"]:
    """Scores of the prompts with one place replaced."""
    source, index = contrast.source[place.hook], place.index

    def replace(value: Tensor, point: object) -> Tensor:
        # A copy: what a hook is given may be a view of something that outlives the pass.
        value = value.clone()
        value[index] = source[index]
        return value

    hooks = [(place.hook, replace)]
    return _scores(behaviour, model.run_with_hooks(contrast.tokens, fwd_hooks=hooks))


def _scores(
    behaviour: Behaviour, logits: Float[Tensor, "prompt pos vocab"]
) -> Float[np.ndarray, " prompt"]:
    return behaviour.score(logits).double().cpu().numpy()


def _tensor(values: Float[np.ndarray, "*axes"]) -> Float[Tensor, "*axes"]:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _labels(model: HookedModel, behaviour: Behaviour) -> tuple[str, ...]:
    """The tokens of the first clean prompt, when the model can spell them."""
    tokenizer = getattr(model, "tokenizer", None)
    return tuple(tokenizer.tokens(behaviour.clean[0].tolist())) if tokenizer else ()


def _one_of(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise BehaviourError(f"no {what} is called {given!r}{nearest(given, known)}")
