"""Causal tracing: restore states of the clean run, by layer and position, in a damaged run.

The subject of the prompt is damaged, one state of the undamaged run is restored, and the share of
the score that comes back is measured (Meng et al. 2022, https://arxiv.org/abs/2202.05262,
section 2). The subject is damaged in one of two ways:

    replaced   the subject is exchanged for another one (symmetric token replacement). This is the
               default, because the model then computes in distribution (Zhang & Nanda 2023,
               https://arxiv.org/abs/2309.16042)
    noised     normal noise, 3 standard deviations wide, is added to the embeddings of the subject,
               in several draws. This is the original method; it finds other components than
               replacement does, and less stably

The restored state is the residual stream after a layer, or the output of the MLPs or attentions in
a `window` of layers around it. Meng et al. use windows of 10 layers. Windows of 5 layers already
inflate peaks, so the default window here is one layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import behaviours, plots
from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, layers_around, read_weights
from interp.errors import BehaviourError, EffectsError, ModelError
from interp.metrics import MetricLike
from interp.patching import engine, paired_runs
from interp.patching.effects import Effects, across
from interp.patching.engine import MEMORY, Patched
from interp.patching.paired_runs import PairedRuns, SweepLayout, SweepOptions
from interp.patching.score_contrast import require_contrast
from interp.results import Result
from train import progress as bars
from train import storage
from train.html_panel import ROWS, Panel, panel_of
from train.model import GPT, attachments
from train.progress import Progress
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pandas

__all__ = ["DAMAGES", "Trace", "causal_trace", "subject_noise"]

SCHEMA = "openbook.trace/1"
RESTORING = "restoring in noise"
DAMAGES = ("replaced", "noised")
SITES = {"residual": "resid_post", "mlps": "mlp", "attention": "attn"}


@dataclass(frozen=True, eq=False)
class Trace(Result):
    """Three maps over (layer, pos) of the share of the score that comes back.

    Attributes:
        residual: Effects of restoring the residual stream after a layer.
        mlps: Effects of restoring the MLP outputs of a window of layers.
        attention: Effects of restoring the attention outputs of a window of layers.
        subject: Half-open span of the subject's positions; None if the behaviour has no subject.
        damage: "replaced" or "noised".
        noise: Width of the noise, in standard deviations of the embeddings of the subjects' tokens;
            0 without noise.
        draws: Number of noise draws that all three maps finished; 1 without noise.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "A trace shows which states suffice to bring the score back after the subject was "
        "damaged; it does not show where the fact is stored, nor which weights learned it."
    )

    residual: Effects
    mlps: Effects
    attention: Effects
    subject: tuple[int, int] | None
    damage: str
    noise: float
    draws: int

    __repr__ = short_repr

    def __str__(self) -> str:
        maps = (self.residual, self.mlps, self.attention)
        highest = ", ".join(f"{name} {one[name]:.2f}" for one in maps for name in one.top(1))
        about = self.residual.provenance.behaviour
        return f"{about!r}, subject {self.damage}, n={self.residual.n_prompts}; highest {highest}"

    def curve(self, what: str, pos: int | None = None) -> "pandas.DataFrame":
        """Return one pandas row per layer at one position: layer, effect, low and high.

        Args:
            what: "residual", "mlps" or "attention".
            pos: Position; None for the last token of the subject, where Meng et al. find the early
                site.

        Raises:
            EffectsError: There is no such map or position, or no subject to take it from.
        """
        if what not in SITES:
            raise EffectsError(f"a trace holds {', '.join(SITES)}, and not {what!r}")
        if pos is None and self.subject is None:
            raise EffectsError("the behaviour has no subject; name the position of the curve")
        chosen = self.subject[1] - 1 if pos is None and self.subject else pos
        frame = getattr(self, what).to_frame()
        found = frame[frame["pos"] == chosen]
        if not len(found):
            raise EffectsError(f"the trace has no position {chosen}")
        return found[["layer", "effect", "low", "high"]].reset_index(drop=True)

    def to_frame(self) -> "pandas.DataFrame":
        """Return all three maps, with one pandas row per layer and position."""
        import pandas

        parts = [getattr(self, what).to_frame().assign(restored=what) for what in SITES]
        return pandas.concat(parts, ignore_index=True)

    def show(self, n: int = ROWS) -> Panel:
        """Return what a notebook shows: the map of the residual stream, and the n best states."""
        frame = self.to_frame().sort_values("effect", ascending=False)
        about = self.residual.provenance
        facts = (
            ("behaviour", about.behaviour),
            ("n_prompts", self.residual.n_prompts),
            ("damage", self.damage),
            ("draws", self.draws),
            ("unit", self.residual.unit),
        )
        part = self.residual.show(n)
        return panel_of(self, n, frame=frame, facts=facts, grid=part.grid, origin=part.origin)

    def plot(self) -> "plots.Figure":
        """Plot the three maps side by side."""
        return _figure(self)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        return {
            "schema": SCHEMA,
            **{what: getattr(self, what).to_dict() for what in SITES},
            "subject": list(self.subject) if self.subject else None,
            "damage": self.damage,
            "noise": self.noise,
            "draws": self.draws,
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Trace":
        """Return the result that `to_dict` turned into plain values."""
        subject = content["subject"]
        return cls(
            **{what: Effects.from_dict(content[what]) for what in SITES},
            subject=(subject[0], subject[1]) if subject else None,
            **{name: content[name] for name in ("damage", "noise", "draws")},
        )


def causal_trace(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    damage: str = "replaced",
    noise: float = 3.0,
    draws: int = 10,
    window: int = 1,
    metric: MetricLike = None,
    memory: int = MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trace:
    """Restore every layer at every position: residual stream, MLP outputs and attention outputs.

    Costs 3 x layers x positions patches, times `draws` with noise.

    Args:
        model: A hooked model; "noised" needs one from `interp.models.load`.
        behaviour: The behaviour whose clean prompts are damaged. "noised" needs its subject.
        damage: "replaced" (by the corrupt prompts) or "noised".
        noise: Width of the noise, in standard deviations of the embeddings of the subjects' tokens.
        draws: Number of noise draws; scores are averaged over them before effects are computed.
        window: Number of layers whose MLP (or attention) outputs are restored together.
        metric: Metric to score, as an object, a name or a function of the behaviour; None for the
            logit difference. Meng et al. use "probability".
        memory: Bytes that may be used above the weights.
        seed: Seed of the noise.
        progress: Function that is told how many states are done.

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: The damage does not change the score.
        BehaviourError: The damage is unknown, or "noised" was chosen for a behaviour without a
            subject, without draws or with a width of 0 or less.
        ModelError: The window is below 1 or above the number of layers, or noise is to be added to
            a model that has hooks of its own.

    Examples:
        >>> trace = patching.causal_trace(model, capital)
        >>> capital.subject, trace.residual.axes
        ((4, 5), ('layer', 'pos'))
        >>> trace.mlps.top(1), trace.attention.top(1)
        ([L0.mlp@5 0.857], [L0.attn@5 0.984])
    """
    paired_runs.one_of("damage", damage, DAMAGES)
    options: SweepOptions = {"metric": metric, "memory": memory, "progress": progress}
    n_layers, n_pos = model.cfg.n_layers, behaviour.n_pos
    if not 1 <= window <= n_layers:
        raise ModelError(f"a window of {window} layers was asked of a model that has {n_layers}")
    found: dict[str, Effects] = {}
    made, stopped = draws, False
    for what, site in SITES.items():
        wide = 1 if what == "residual" else window
        places = [
            Component(site, layer, pos=p) for layer, p in product(range(n_layers), range(n_pos))
        ]
        patches = [_window(place, wide, n_layers) for place in places]
        names = tuple(map(str, places))
        layout = SweepLayout(site, ("layer", "pos"), (n_layers, n_pos), names, window=wide)
        if stopped:
            # Ctrl-C ends the whole trace: the maps after it are filled with nan, with a note.
            found[what] = _missing(found["residual"], layout)
        elif damage == "replaced":
            found[what] = paired_runs.sweep(model, behaviour, patches, layout, seed=seed, **options)
            stopped = found[what].unfinished > 0
        else:
            with bars.shown(behaviour.name, progress) as told:
                options["progress"] = told
                drawn = (noise, draws, seed)
                found[what], n = _noised(model, behaviour, patches, layout, drawn, options)
            made, stopped = min(made, n), n < draws or found[what].unfinished > 0
    noised = damage == "noised"
    return Trace(
        **found,
        subject=behaviour.subject,
        damage=damage,
        noise=noise if noised else 0.0,
        draws=made if noised else 1,
    )


def subject_noise(
    model: GPT, behaviour: Behaviour, *, noise: float = 3.0, seed: int = 0
) -> Float[Tensor, "prompt pos d_model"]:
    """Draw the noise that is added to the embeddings; it is 0 outside the subject.

    Its standard deviation is `noise` times that of the embeddings of all subjects' tokens.

    Raises:
        BehaviourError: The behaviour has no subject.

    Examples:
        >>> noise = patching.subject_noise(model, capital)
        >>> tuple(noise.shape), capital.subject
        ((52, 6, 128), (4, 5))
        >>> noise.abs().sum(dim=(0, 2)).gt(0).tolist()
        [False, False, False, False, True, False]
    """
    if behaviour.subject is None:
        raise BehaviourError(
            f"behaviour {behaviour.name!r} names no subject, so there is nothing to put noise on; "
            "trace it with damage 'replaced'"
        )
    first, last = behaviour.subject
    tokens = behaviour.clean[:, first:last].to(model.device)
    width = noise * model.W_E[tokens].float().std()
    draw = torch.Generator().manual_seed(seed)
    shape = (*tokens.shape, model.cfg.d_model)
    found = torch.zeros(
        behaviour.n_prompts, behaviour.n_pos, model.cfg.d_model, dtype=torch.float32
    )
    found[:, first:last] = torch.randn(shape, generator=draw, dtype=torch.float32)
    return (found.to(model.device) * width).to(model.W_E.dtype)


def _missing(like: Effects, layout: SweepLayout) -> Effects:
    """Return effects of which nothing was measured: all values are nan."""
    return replace(
        like,
        site=layout.site,
        values=torch.full(layout.shape, float("nan"), dtype=torch.float32),
        low=None,
        high=None,
        part=None,
        whole=None,
        places=layout.places,
        window=layout.window,
        notes=("interrupted: nothing was measured",),
        also=(),
    )


def _window(place: Component, window: int, n_layers: int) -> list[Component]:
    """Return the component in the layers around it, cut off at both ends as Meng et al. do."""
    layers = layers_around(place.layer, window, n_layers)
    return [Component(place.site, layer, pos=place.pos) for layer in layers]


@torch.inference_mode()
def _noised(
    model: HookedModel,
    behaviour: Behaviour,
    patches: Sequence[Sequence[Component]],
    layout: SweepLayout,
    drawn: tuple[float, int, int],
    options: SweepOptions,
) -> tuple[Effects, int]:
    """Restore clean states in noised runs; return the mean effects and the number of full draws."""
    model = read_weights(model, "a trace with noise")
    behaviours.check(model, behaviour)
    if model.cfg.retention:
        raise ModelError("a trace with noise does not run models with retention; patch instead")
    if not engine.engine_runs(model):
        raise ModelError(
            f"{attachments(model)[0]}, which a trace does not run; take the model without it"
        )
    noise, draws, seed = drawn
    memory, progress = options.get("memory", MEMORY), options.get("progress")
    if draws < 1 or noise <= 0:
        raise BehaviourError(f"{draws} draws of noise of width {noise} damage nothing")
    clean = behaviour.clean.to(model.device)
    read = paired_runs.resolved(options.get("metric"), behaviour)
    shared = behaviour.subject[0] if behaviour.subject else 0

    found: list[Patched] = []
    for draw in range(draws):
        added = subject_noise(model, behaviour, noise=noise, seed=seed * draws + draw)
        one = engine.scores(
            model,
            clean,
            patches,
            engine.source_of(model, clean, patches),
            read,
            shared=shared,
            memory=memory,
            progress=_part(progress, draw, draws),
            added=added,
        )
        found.append(one)
        if not one.done.all():
            break
    mean, made = engine.averaged(found)
    goal = engine.unpatched(model, clean, read, memory=memory)
    start, goal = mean.start.numpy(), goal.double().numpy()
    ends = ("clean prompts", f"those with noise of {noise:g} deviations on the subject")
    notes: tuple[str, ...] = ()
    for measured, clean_score, damaged in zip(read, goal, start, strict=True):
        notes += require_contrast(
            clean_score,
            damaged,
            np.array(behaviour.cases),
            name=behaviour.name,
            metric=measured.name,
            ends=ends,
        )
    runs = PairedRuns(
        model=model,
        behaviour=behaviour,
        metrics=read,
        direction="denoising",
        receiver=clean,
        donor=clean,
        shared=shared,
        start=start,
        goal=goal,
        seed=seed,
        notes=notes,
    )
    effects = runs.effects(mean, layout)
    return _called_noised(effects, f"{made} of {draws} draws of noise, {noise:g} deviations"), made


def _called_noised(effects: Effects, note: str) -> Effects:
    """Relabel effects: they are relative to the noised run instead of the corrupt prompts."""
    return replace(
        effects,
        direction=RESTORING,
        unit=effects.unit.replace("clean-corrupt", "clean-noised"),
        notes=(note, *effects.notes),
        also=tuple(_called_noised(one, note) for one in effects.also),
    )


def _part(progress: Progress | None, number: int, of: int) -> Callable[..., None] | None:
    """Return a progress function that reports one draw as a part of all draws."""
    if progress is None:
        return None

    def tell(what: str, done: int, total: int | None) -> None:
        progress(what, number * (total or 0) + done, (total or 0) * of)

    return tell


def _figure(found: Trace) -> "plots.Figure":
    """Draw the three heat maps side by side, on one colour scale."""
    maps = {"one state": found.residual, "MLPs": found.mlps, "attention": found.attention}
    titles = [f"{name}, window {one.window}" for name, one in maps.items()]
    figure = plots.figure(titles)
    limit = max(float(one.values.nan_to_num().abs().max()) for one in maps.values()) or 1.0
    for column, one in enumerate(maps.values(), start=1):
        down = [f"L{layer}" for layer in range(one.values.shape[0])]
        cells = plots.heat_map(
            one.values.tolist(), down, across(one), title="", unit=one.unit
        ).data[0]
        cells.update(zmin=-limit, zmax=limit, showscale=column == 3)
        figure.add_trace(cells, row=1, col=column)
    about = found.residual.provenance.behaviour
    figure.update_xaxes(title="position")
    figure.update_yaxes(title="layer", col=1)
    title = f"{about}: restored states, subject {found.damage}"
    # Room for the title above those of the maps.
    framed = plots.framed(figure, title)
    framed.update_layout(width=2 * plots.WIDTH, margin={"t": 72})
    return framed
