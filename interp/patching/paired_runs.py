"""Paired clean and corrupt runs, and the normalisation of patched scores to effects.

Denoising runs the corrupt prompts and patches in activations of the clean prompts; it finds
components that suffice for the behaviour. Noising runs the clean prompts and patches in activations
of the corrupt ones; it finds components that are needed. In both directions an effect of 1 is the
whole difference between the two scores, and 0 none of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from interp import behaviours, metrics
from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, device_of
from interp.errors import BehaviourError
from interp.metrics import Metric, MetricLike
from interp.patching import contrast_check, engine
from interp.patching.effects import UNIT, Effects
from interp.patching.engine import MEMORY, Patched
from interp.patching.score_contrast import require_contrast
from interp.results import provenance
from train import progress as bars
from train.errors import nearest
from train.progress import Progress
from train.short_repr import short_repr
from train.statistics import mean_interval, ratio_interval


__all__ = [
    "DIRECTIONS",
    "Metrics",
    "PairedRuns",
    "SweepLayout",
    "SweepOptions",
    "one_of",
    "refuse_misuse",
    "resolved",
    "sweep",
]

DIRECTIONS = ("denoising", "noising")


# One or several metrics.
Metrics = MetricLike | Sequence[MetricLike]


class SweepOptions(TypedDict, total=False):
    """Options that every sweep takes.

    Attributes:
        metric: One or several metrics, as objects, names or functions of the behaviour, all
            measured in the same passes; default: the logit difference.
        direction: "denoising" (the default) or "noising".
        memory: Bytes that may be used above the weights.
        progress: Function that is told (what, done, total).
    """

    metric: Metrics
    direction: str
    memory: int
    progress: Progress | None


def resolved(metric: Metrics, behaviour: Behaviour) -> tuple[Metric, ...]:
    """Return the metrics, at least one.

    Raises:
        BehaviourError: There is no metric, or two have the same name.
    """
    # A name is a sequence of letters, and one metric.
    several = metric if isinstance(metric, Sequence) and not isinstance(metric, str) else [metric]
    made = tuple(metrics.resolve(one, behaviour) for one in several)
    if not made or len({one.name for one in made}) < len(made):
        raise BehaviourError(f"{len(made)} metrics were given; give one or more, each once")
    return made


@dataclass(frozen=True, eq=False)
class SweepLayout:
    """Layout of a flat list of patches as the axes of `Effects`.

    Attributes:
        site: A key of `components.SITES`, or "several".
        axes: Names of the axes.
        shape: Lengths of the axes; their product is the number of patches, in row-major order.
        places: Name of every patch.
        window: Number of layers, around the named one, that are patched together.
        through: For path patching: the other end of the paths and how MLPs are treated.
    """

    site: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    places: tuple[str, ...]
    window: int = 1
    through: str = ""

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class PairedRuns:
    """The two unpatched runs of a behaviour, checked once, and how patched runs are scored.

    Attributes:
        model: The hooked model.
        behaviour: The behaviour whose clean and corrupt prompts are the two runs.
        metrics: The metrics, at least one.
        direction: "denoising" or "noising".
        receiver: Prompts that are run and patched (the corrupt ones when denoising).
        donor: Prompts whose activations are patched in (the clean ones when denoising).
        shared: Number of leading tokens that are equal in every pair of prompts.
        start: Scores of the receiver: an effect of 0.
        goal: Scores of the donor: an effect of 1.
        memory: Bytes that may be used above the weights.
        progress: Function that is told the progress.
        seed: Seed recorded in the provenance.
        notes: Remarks about too few prompts, which go to every result.

    Examples:
        >>> pair = patching.PairedRuns.of(model, ioi)
        >>> pair.direction, pair.shared, pair.start.shape
        ('denoising', 10, (1, 64))
        >>> whole = float(pair.goal.mean() - pair.start.mean())  # in nats: an effect of 1
        >>> whole > 5
        True
    """

    model: HookedModel
    behaviour: Behaviour
    metrics: tuple[Metric, ...]
    direction: str
    receiver: Int[Tensor, "prompt pos"]
    donor: Int[Tensor, "prompt pos"]
    shared: int
    start: Float[np.ndarray, "metric prompt"]
    goal: Float[np.ndarray, "metric prompt"]
    memory: int = MEMORY
    progress: Progress | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    __repr__ = short_repr

    @classmethod
    def of(
        cls,
        model: HookedModel,
        behaviour: Behaviour,
        *,
        metric: Metrics = None,
        direction: str = "denoising",
        memory: int = MEMORY,
        progress: Progress | None = None,
        seed: int = 0,
        check: bool = True,
    ) -> "PairedRuns":
        """Score the clean and the corrupt prompts, and check that there is an effect to measure.

        Args:
            check: Whether the model must do the behaviour; the model of an untrained control does
                not.

        Raises:
            CapabilityError: The model does not do the behaviour.
            ContrastError: The model scores clean and corrupt prompts alike.
        """
        one_of("direction", direction, DIRECTIONS)
        if check:
            behaviours.check(model, behaviour)
        device, read = device_of(model), resolved(metric, behaviour)
        clean, corrupt = behaviour.clean.to(device), behaviour.corrupt.to(device)
        denoising = direction == "denoising"
        donor, receiver = (clean, corrupt) if denoising else (corrupt, clean)
        start, goal = (
            engine.unpatched(model, tokens, read, memory=memory).double().numpy()
            for tokens in (receiver, donor)
        )
        ends = (goal, start) if denoising else (start, goal)
        notes: tuple[str, ...] = ()
        if check:
            prompts = np.array(behaviour.cases)
            for measured, on_clean, on_corrupt in zip(read, *ends, strict=True):
                notes += require_contrast(
                    on_clean, on_corrupt, prompts, name=behaviour.name, metric=measured.name
                )
        shared = int((clean != corrupt).any(dim=0).int().argmax())
        return cls(
            model=model,
            behaviour=behaviour,
            metrics=read,
            direction=direction,
            receiver=receiver,
            donor=donor,
            shared=shared,
            start=start,
            goal=goal,
            memory=memory,
            progress=progress,
            seed=seed,
            notes=notes,
        )

    def patching(
        self,
        patches: Sequence[Sequence[Component]],
        donated: Sequence[Sequence[Component]] | None = None,
    ) -> partial[Patched]:
        """Return `engine.scores` for these patches of the receiver with the donor's activations.

        It is called with `progress`. It is returned, not called, so that no further frame stands
        between a sweep and the engine.

        Args:
            donated: Components whose activations are taken from the donor; default: the patches.

        Examples:
            >>> pair = patching.PairedRuns.of(model, ioi)
            >>> patched = pair.patching([[components.parse("L0H1")]])(progress=None)
            >>> tuple(patched.scores.shape)  # metric, patch, prompt
            (1, 1, 64)
        """
        return partial(
            engine.scores,
            self.model,
            self.receiver,
            patches,
            engine.source_of(self.model, self.donor, patches if donated is None else donated),
            self.metrics,
            shared=self.shared,
            memory=self.memory,
        )

    def effects(self, patched: Patched, layout: SweepLayout) -> Effects:
        """Return the scores of patched runs as effects on the first metric, the others in `also`.

        An effect is mean(score - start) / mean(goal - start) over prompts.
        """
        behaviour = self.behaviour
        common: dict[str, Any] = {
            "site": layout.site,
            "axes": layout.axes,
            "direction": self.direction,
            "provenance": provenance(self.model, behaviour, seed=self.seed),
            "pos_labels": _labels(self.model, behaviour) if "pos" in layout.axes else (),
            "places": layout.places,
            "window": layout.window,
            "through": layout.through,
            "notes": (*self.notes, *_notes(patched, behaviour, layout)),
            "peak_bytes": patched.peak_bytes,
        }
        prompts = np.array(behaviour.cases)
        first, *also = [
            {
                **_of_metric(
                    patched.scores[i].numpy(), self.start[i], self.goal[i], prompts, layout
                ),
                "metric": metric.name,
                "unit": UNIT.replace("logit difference", metric.name),
                **_baselines(self, i, prompts),
            }
            for i, metric in enumerate(self.metrics)
        ]
        others = tuple(Effects(**common, **one) for one in also)
        return Effects(**common, **first, also=others)


def sweep(
    model: HookedModel,
    behaviour: Behaviour,
    patches: Sequence[Sequence[Component]],
    layout: SweepLayout,
    *,
    seed: int = 0,
    **options: Unpack[SweepOptions],
) -> Effects:
    """Run every patch between the behaviour's two runs and return the normalised effects.

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: The model scores clean and corrupt prompts alike.
        ModelError: A component does not exist in the model.
        BehaviourError: No patch can reach a position that the metric reads.
        BudgetError: Not even one patch fits into the allowed memory.

    Examples:
        >>> patches = [[components.parse(name)] for name in ("L0.mlp", "L1.mlp")]
        >>> layout = patching.SweepLayout("mlp", ("layer",), (2,), ("L0.mlp", "L1.mlp"))
        >>> effects = patching.sweep(model, ioi, patches, layout)
        >>> effects.axes, effects["L0.mlp"] == patching.mlps(model, ioi)["L0.mlp"]
        (('layer',), True)
    """
    engine.refuse_unknown(model, patches, behaviour.n_pos)
    read = resolved(options.get("metric"), behaviour)
    _refuse_unread(model, behaviour, patches, read)
    runs = PairedRuns.of(model, behaviour, seed=seed, **{**options, "metric": read})
    with bars.shown(behaviour.name, runs.progress) as told:
        patched = runs.patching(patches)(progress=told)
    return runs.effects(patched, layout)


def _refuse_unread(
    model: HookedModel,
    behaviour: Behaviour,
    patches: Sequence[Sequence[Component]],
    read: Sequence[Metric],
) -> None:
    """Raise a BehaviourError if no patch can reach a position that the metrics read.

    In a causal model nothing flows to earlier positions. A component at positions after all those
    read, or in the last layer at positions that are not read, has an effect of 0 in any case.
    """
    if not getattr(model.cfg, "causal", True):
        return
    reads = sorted({pos for one in read for pos in one.reads(behaviour.n_pos)})
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
    # In the last layer, later positions still read keys, values and the layer's input.
    stays = place.site not in ("resid_pre", "k", "v")
    return place.layer == last_layer and stays and not set(place.positions) & set(reads)


def _of_metric(
    scores: Float[np.ndarray, "patch prompt"],
    start: Float[np.ndarray, " prompt"],
    goal: Float[np.ndarray, " prompt"],
    prompts: Int64[np.ndarray, " prompt"],
    layout: SweepLayout,
) -> dict[str, Any]:
    """Return the effects mean(scores - start) / mean(goal - start), and their intervals."""
    part, whole = _by_prompt(scores - start, prompts), _by_prompt(goal - start, prompts)
    bounds = ratio_interval(part, whole)
    values, low, high = (
        None if one is None else _tensor(one.reshape(layout.shape))
        for one in (part.sum(axis=-1) / whole.sum(), *(bounds or (None, None)))
    )
    return {
        "values": values,
        "low": low,
        "high": high,
        "n_prompts": len(whole),
        "part": _tensor(part.reshape(*layout.shape, len(whole))),
        "whole": _tensor(whole),
    }


def _baselines(
    runs: PairedRuns, metric: int, prompts: Int64[np.ndarray, " prompt"]
) -> dict[str, Any]:
    """Return the mean clean and corrupt scores, with their intervals over distinct prompts."""
    denoising = runs.direction == "denoising"
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
    """Return notes on components that the prompts do not vary and on unfinished patches.

    Also warns about the former, unless positions are an axis.
    """
    still = contrast_check.unmoved(
        layout.places, found.moved.masked_fill(~found.done, float("inf"))
    )
    notes = []
    if still:
        notes.append(
            f"{len(still)} of {len(layout.places)} places hold the same values on clean and "
            "corrupt prompts: an effect of 0 there says nothing"
        )
    # With a position axis every sweep contains such components: those before the first token that
    # differs. A warning would then appear every time.
    if "pos" not in layout.axes:
        contrast_check.warn_unmoved(behaviour.name, still, len(layout.places))
    left = int((~found.done).sum())
    if left:
        notes.append(f"interrupted: {left} of {len(found.done)} places are missing")
    return tuple(notes)


def _by_prompt(
    scores: Float[np.ndarray, "*places row"], prompts: Int64[np.ndarray, " row"]
) -> Float[np.ndarray, "*places prompt"]:
    """Sum scores over the rows of each distinct prompt.

    A prompt with several foils has several rows and counts as one prompt in the interval.
    """
    return scores @ (prompts[:, None] == np.arange(prompts.max() + 1)).astype(scores.dtype)


def _tensor(values: Float[np.ndarray, "*axes"]) -> Float[Tensor, "*axes"]:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _labels(model: HookedModel, behaviour: Behaviour) -> tuple[str, ...]:
    """Return the tokens of the first clean prompt; () if the model has no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if not tokenizer:
        return ()
    # One at a time, as tokenizers of transformers have it too.
    return tuple(tokenizer.decode([one]) for one in behaviour.clean[0].tolist())


def refuse_misuse(model: object, behaviour: object) -> None:
    """Raise a BehaviourError unless a sweep got a hooked model and a behaviour."""
    if not isinstance(behaviour, Behaviour):
        raise BehaviourError(
            f"{behaviour!r} is no behaviour; load one with behaviours.load(name, run)"
        )
    if not hasattr(model, "cfg"):
        raise BehaviourError(f"{model!r} is no model; load one with models.load(run)")


def one_of(what: str, given: str, known: Sequence[str]) -> None:
    """Raise a BehaviourError unless `given` is one of the `known` words.

    Examples:
        >>> patching.one_of("direction", "back", ("denoising", "noising"))
        Traceback (most recent call last):
            ...
        interp.errors.BehaviourError: no direction is called 'back'; known are denoising, noising
    """
    if given not in known:
        raise BehaviourError(f"no {what} is called {given!r}{nearest(given, known)}")
