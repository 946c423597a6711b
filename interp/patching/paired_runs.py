"""From patched runs to effects: two runs, the patches between them, and shares of their difference.

Denoising runs the corrupt prompts and writes in what the clean prompts computed: it finds what
suffices. Noising is the other way round and finds what is needed. Either way 1 is all of the
difference between the two scores, and 0 none of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from interp import behaviours, metrics
from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, device_of
from interp.errors import BehaviourError, ContrastError, ModelError
from interp.metrics import Metric
from interp.patching import contrast_check, engine
from interp.patching.effects import UNIT, Effects, provenance
from interp.patching.engine import MEMORY, Patched, Progress, Source
from interp.statistics import mean_interval, ratio_interval
from train import progress as bars
from train.errors import nearest


__all__ = [
    "DIRECTIONS",
    "Metrics",
    "PairedRuns",
    "PatchOptions",
    "SweepLayout",
    "normalized_effects",
    "of_patched",
    "one_of",
    "pair_runs",
    "refuse_misuse",
]

DIRECTIONS = ("denoising", "noising")


# A metric, its name, or what makes it from a behaviour; or several of them.
OneMetric = Metric | str | Callable[[Behaviour], Metric]
Metrics = OneMetric | Sequence[OneMetric] | None


@dataclass(frozen=True, eq=False)
class PatchOptions:
    """What every sweep may be told. `metric` None is the logit difference."""

    metric: Metrics = None
    direction: str = "denoising"
    memory: int = MEMORY
    progress: Progress | None = None
    seed: int = 0

    def metrics(self, behaviour: Behaviour) -> list[Metric]:
        """At least one."""
        asked = self.metric
        if asked is None:
            return [metrics.logit_difference(behaviour)]
        alone = [asked] if isinstance(asked, Metric | str) or callable(asked) else asked
        given = [_made(metric, behaviour) for metric in alone]
        if not given or len({one.name for one in given}) < len(given):
            raise BehaviourError(f"{len(given)} metrics were given; give one or more, each once")
        return given


def _made(metric: Metric | str | Callable[[Behaviour], Metric], behaviour: Behaviour) -> Metric:
    """A metric as it is, by its name, or from its maker."""
    if isinstance(metric, str):
        return metrics.named(metric, behaviour)
    return metric if isinstance(metric, Metric) else metric(behaviour)


@dataclass(frozen=True, eq=False)
class SweepLayout:
    """How a flat list of patches is shown.

    Attributes:
        site: A key of `components.SITES`, or "several".
        axes: Names of the axes.
        shape: Their lengths; the product is the number of patches, in row-major order.
        places: Name of every patch.
        window: Layers around each that go with it.
        through: Of paths, what hears them.
    """

    site: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    places: tuple[str, ...]
    window: int = 1
    through: str = ""


@dataclass(frozen=True, eq=False)
class PairedRuns:
    """The two unpatched runs of a behaviour.

    Attributes:
        here: Prompts that are run and patched.
        there: Prompts whose activations are written in.
        shared: So many first tokens are the same in every pair.
        start: Scores of `here`.
        goal: Scores of `there`.
    """

    here: Int[Tensor, "prompt pos"]
    there: Int[Tensor, "prompt pos"]
    shared: int
    start: Float[np.ndarray, "metric prompt"]
    goal: Float[np.ndarray, "metric prompt"]

    def source(self, model: HookedModel, patches: Sequence[Sequence[Component]]) -> Source:
        """Activations of `there` at the places, made slab by slab."""
        names = sorted({place.hook for patch in patches for place in patch})

        def run(prompts: slice) -> dict[str, Tensor]:
            if engine.engine_runs(model):
                return engine.activations(model, self.there[prompts], names)  # type: ignore[arg-type]
            _, cache = model.run_with_cache(self.there[prompts], names_filter=names)
            missing = [name for name in names if name not in cache]
            if missing:
                raise ModelError(
                    f"a hook at {missing[0]} never fired in this {type(model).__name__}, so what "
                    "is there cannot be patched"
                )
            return {name: cache[name] for name in names}

        return run


def pair_runs(model: HookedModel, behaviour: Behaviour, how: PatchOptions) -> PairedRuns:
    """Check that there is something to find, and score both ends.

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: The model scores clean and corrupt prompts alike.
    """
    one_of("direction", how.direction, DIRECTIONS)
    behaviours.check(model, behaviour)
    device, read = device_of(model), how.metrics(behaviour)
    clean, corrupt = behaviour.clean.to(device), behaviour.corrupt.to(device)
    there, here = (clean, corrupt) if how.direction == "denoising" else (corrupt, clean)
    start, goal = (
        engine.unpatched(model, tokens, read, memory=how.memory).double().numpy()
        for tokens in (here, there)
    )
    ends = (goal, start) if how.direction == "denoising" else (start, goal)
    for metric, clean_score, corrupt_score in zip(read, *ends, strict=True):
        if not abs(clean_score.mean() - corrupt_score.mean()) >= 1e-6:
            raise ContrastError(
                f"behaviour {behaviour.name!r} scores {clean_score.mean():.3g} on clean and "
                f"{corrupt_score.mean():.3g} on corrupt prompts ({metric.name}); patching needs "
                "prompts that the model tells apart"
            )
    differing = (clean != corrupt).any(dim=0)
    return PairedRuns(here, there, int(differing.int().argmax()), start, goal)


def normalized_effects(
    model: HookedModel,
    behaviour: Behaviour,
    patches: Sequence[Sequence[Component]],
    layout: SweepLayout,
    how: PatchOptions,
) -> Effects:
    """Run every patch between the behaviour's two runs.

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: The model scores clean and corrupt prompts alike.
        ModelError: A place that the model does not have.
        BehaviourError: No patch can reach what the metric reads.
        BudgetError: Not even one patch fits into the memory allowed.
    """
    engine.refuse_unknown(model, patches, behaviour.n_pos)
    refuse_unread(model, behaviour, patches, how)
    runs = pair_runs(model, behaviour, how)
    with bars.shown(behaviour.name, how.progress) as told:
        found = engine.scores(
            model,
            runs.here,
            patches,
            runs.source(model, patches),
            how.metrics(behaviour),
            shared=runs.shared,
            memory=how.memory,
            progress=told,
        )
    return of_patched(model, behaviour, found, runs, layout, how)


def refuse_unread(
    model: HookedModel,
    behaviour: Behaviour,
    patches: Sequence[Sequence[Component]],
    how: PatchOptions,
) -> None:
    """Raise a BehaviourError when no patch can reach what the metrics read.

    In a causal model nothing flows back: a place behind every position that is read, or one in the
    last layer beside them, has an effect of 0 whatever it does.
    """
    if not getattr(model.cfg, "causal", True):
        return
    reads = sorted({pos for one in how.metrics(behaviour) for pos in one.reads(behaviour.n_pos)})
    last = model.cfg.n_layers - 1
    if all(_unread(place, reads, last) for patch in patches for place in patch):
        raise BehaviourError(
            f"none of the {len(patches)} patches reaches position {', '.join(map(str, reads))}, "
            "which is all that the metric reads; patch places before it"
        )


def _unread(place: Component, reads: Sequence[int], last_layer: int) -> bool:
    if place.positions is None:
        return False
    if min(place.positions) > reads[-1]:
        return True
    # Keys, values and what enters the last layer are still read by later positions.
    stays = place.site not in ("resid_pre", "k", "v")
    return place.layer == last_layer and stays and not set(place.positions) & set(reads)


def of_patched(
    model: HookedModel,
    behaviour: Behaviour,
    found: Patched,
    runs: PairedRuns,
    layout: SweepLayout,
    how: PatchOptions,
) -> Effects:
    """Scores of patched runs as shares, the first metric in front."""
    notes = _notes(found, behaviour, layout)
    common: dict[str, Any] = {
        "site": layout.site,
        "axes": layout.axes,
        "direction": how.direction,
        "provenance": provenance(model, behaviour, seed=how.seed),
        "pos_labels": _labels(model, behaviour) if "pos" in layout.axes else (),
        "places": layout.places,
        "window": layout.window,
        "through": layout.through,
        "notes": notes,
        "peak_bytes": found.peak_bytes,
    }
    prompts = np.array(behaviour.distinct)
    first, *also = [
        {
            **_of_metric(found.scores[i].numpy(), runs.start[i], runs.goal[i], prompts, layout),
            "metric": metric.name,
            "unit": UNIT.replace("logit difference", metric.name),
            **_baselines(runs, i, prompts, denoising=how.direction == "denoising"),
        }
        for i, metric in enumerate(how.metrics(behaviour))
    ]
    others = tuple(Effects(**common, **one) for one in also)
    return Effects(**common, **first, also=others)


def _of_metric(
    scores: Float[np.ndarray, "patch prompt"],
    start: Float[np.ndarray, " prompt"],
    goal: Float[np.ndarray, " prompt"],
    prompts: Int64[np.ndarray, " prompt"],
    layout: SweepLayout,
) -> dict[str, Any]:
    """Shares and their intervals."""
    part, whole = scores - start, goal - start
    bounds = ratio_interval(_by_prompt(part, prompts), _by_prompt(whole, prompts))
    values, low, high = (
        None if one is None else _tensor(one.reshape(layout.shape))
        for one in (part.mean(axis=-1) / whole.mean(), *(bounds or (None, None)))
    )
    return {"values": values, "low": low, "high": high, "n_prompts": int(prompts.max()) + 1}


def _baselines(
    runs: PairedRuns, metric: int, prompts: Int64[np.ndarray, " prompt"], *, denoising: bool
) -> dict[str, Any]:
    """Mean scores of both ends, with their intervals over distinct prompts."""
    count = np.bincount(prompts)
    goal, start = (
        _by_prompt(end[metric][None], prompts)[0] / count for end in (runs.goal, runs.start)
    )
    clean, corrupt = (goal, start) if denoising else (start, goal)
    ends = (runs.goal, runs.start) if denoising else (runs.start, runs.goal)
    return {
        "clean": float(ends[0][metric].mean()),
        "corrupt": float(ends[1][metric].mean()),
        "clean_interval": mean_interval(clean),
        "corrupt_interval": mean_interval(corrupt),
    }


def _notes(found: Patched, behaviour: Behaviour, layout: SweepLayout) -> tuple[str, ...]:
    """What the contrast does not vary, warned of where it is not just what comes before it."""
    still = contrast_check.unmoved(
        layout.places, found.moved.masked_fill(~found.done, float("inf"))
    )
    notes = []
    if still:
        notes.append(
            f"{len(still)} of {len(layout.places)} places hold the same values on clean and "
            "corrupt prompts: an effect of 0 there says nothing"
        )
    # Where positions are an axis, those that read nothing that differs are in every sweep.
    if "pos" not in layout.axes:
        contrast_check.warn_unmoved(behaviour.name, still, len(layout.places))
    left = int((~found.done).sum())
    if left:
        notes.append(f"interrupted: {left} of {len(found.done)} places are missing")
    return tuple(notes)


def _by_prompt(
    scores: Float[np.ndarray, "*places row"], prompts: Int64[np.ndarray, " row"]
) -> Float[np.ndarray, "*places prompt"]:
    """Sums over the rows of each distinct prompt: beside many foils it is drawn as one."""
    return scores @ (prompts[:, None] == np.arange(prompts.max() + 1)).astype(scores.dtype)


def _tensor(values: Float[np.ndarray, "*axes"]) -> Float[Tensor, "*axes"]:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _labels(model: HookedModel, behaviour: Behaviour) -> tuple[str, ...]:
    """The tokens of the first clean prompt, when the model can spell them."""
    tokenizer = getattr(model, "tokenizer", None)
    return tuple(tokenizer.tokens(behaviour.clean[0].tolist())) if tokenizer else ()


def refuse_misuse(model: object, behaviour: object) -> None:
    """Raise a BehaviourError unless the two nouns of a sweep are what they should be."""
    if not isinstance(behaviour, Behaviour):
        raise BehaviourError(
            f"{behaviour!r} is no behaviour; load one with behaviours.load(name, run)"
        )
    if not hasattr(model, "cfg"):
        raise BehaviourError(f"{model!r} is no model; load one with hooked.load(run)")


def one_of(what: str, given: str, known: Sequence[str]) -> None:
    """Raise a BehaviourError unless `given` is one of the words."""
    if given not in known:
        raise BehaviourError(f"no {what} is called {given!r}{nearest(given, known)}")
