"""Attribution patching and AtP*: first-order estimates of patching effects, and their verification.

Attribution patching estimates the effect of every component at once, from two forward passes and
one backward pass, as (source - here) * gradient (Nanda 2023; Syed et al. 2023,
https://arxiv.org/abs/2310.10348). `here` is the activation in the run that is patched, where the
gradient is taken, and `source` the activation that would be patched in. The estimate misses
components whose effect passes through a saturated softmax, and components whose direct and indirect
effects cancel. AtP* (Kramar et al. 2024, https://arxiv.org/abs/2403.00745) corrects both, see
`interp.attribution_patching.qk_fix` and `interp.attribution_patching.grad_drop`.

Estimates are `Effects` with the axes, unit and intervals of the sweeps of `interp.patching`, so
that the two can be compared entry by entry. The intervals are over prompts and do not include the
error of the approximation. Measure that error: `verify` patches the components with the largest
estimates exactly, and `interp.attribution_patching.missed_effects` bounds the effects of the rest.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import metrics, patching
from interp.attribution_patching import grad_drop, qk_fix
from interp.attribution_patching.grad_drop import Slopes
from interp.attribution_patching.verification import Agreement, compared
from interp.behaviours import Behaviour
from interp.components import SITES, Component, HookedModel, heads_at, parse
from interp.errors import BehaviourError, EffectsError, ModelError, UninformativeWarning
from interp.metrics import MetricLike
from interp.patching import Effects, PairedRuns, SweepLayout, SweepOptions
from interp.patching.engine import MEMORY, Patched
from interp.results import ABSOLUTE, provenance
from train.progress import Progress


__all__ = ["OVER", "atp_star", "attribution", "refuse_another", "verify"]

# Name of each sweep, and the site that it patches.
OVER = {
    "residual": "resid_pre",
    "heads": "head",
    "attention": "attn",
    "mlps": "mlp",
    "neurons": "neuron",
    "queries": "q",
    "keys": "k",
    "values": "v",
}
POSITIONS = ("each", "together")


def attribution(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    over: str = "heads",
    positions: str | None = None,
    metric: MetricLike = None,
    direction: str = "denoising",
    seed: int = 0,
) -> Effects:
    """Estimate the effect of every component of one kind by attribution patching.

    Costs two forward passes and one backward pass over the prompts.

    Args:
        model: A hooked model.
        behaviour: The behaviour whose clean and corrupt prompts are the two runs.
        over: Kind of component: a key of `OVER`, named like the sweeps of `interp.patching`.
        positions: "each" or "together"; None for "each" with the residual stream and "together"
            otherwise.
        metric: A differentiable metric, as an object, a name or a function of the behaviour; None
            for the logit difference.
        direction: "denoising" or "noising". The gradient is taken in the run that is patched.
        seed: Seed recorded in the provenance; nothing is drawn.

    Returns:
        Signed effects over `(layer[, head or neuron][, pos])`.

    Raises:
        CapabilityError: The model does not do the behaviour.
        ContrastError: The model scores clean and corrupt prompts alike.
        BehaviourError: `over`, `positions` or `direction` has an unknown value.
        ModelError: The metric has no gradient at these components.

    Examples:
        >>> estimate = attribution_patching.attribution(model, ioi)
        >>> estimate.top(2)
        [L0H1 0.501, L0H3 0.0481]
    """
    plan = _Plan.of(model, behaviour, over, positions)
    options: SweepOptions = {"metric": metric, "direction": direction}
    return _estimate(model, behaviour, plan, "attribution patching", seed, options)


def atp_star(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    over: str = "heads",
    positions: str | None = None,
    qk_fix: bool = True,
    grad_drop: bool = True,
    metric: MetricLike = None,
    direction: str = "denoising",
    seed: int = 0,
) -> Effects:
    """Estimate effects by AtP*: attribution patching with the QK fix and GradDrop.

    Args:
        model: A hooked model.
        behaviour: The behaviour whose clean and corrupt prompts are the two runs.
        over: As in `attribution`.
        positions: As in `attribution`.
        qk_fix: Recompute the softmax exactly after patched queries and keys. Other components are
            estimated as in `attribution`.
        grad_drop: Run one backward pass per layer, each without the gradient through that layer.
            The effects have no sign: they are sums of absolute values over the L passes, divided by
            L - 1 (for a component inside a layer the pass that drops this layer gives 0) or by L
            (for the residual stream, which belongs to no layer). The paper takes absolute values
            per prompt; here they are taken of the mean over prompts, so that a component that does
            not interact with others is estimated at the size of its exact effect. The signs are
            those of all prompts together, so `Effects.held_out` refuses such estimates.
        metric: As in `attribution`.
        direction: As in `attribution`.
        seed: As in `attribution`.

    Returns:
        Effects over `(layer[, head or neuron][, pos])`; absolute values with `grad_drop`.

    Raises:
        ModelError: `grad_drop` with a model of one layer. Other errors are those of `attribution`.

    Examples:
        >>> estimate = attribution_patching.atp_star(model, ioi)
        >>> estimate.top(1), (estimate.values >= 0).all().item()
        ([L0H1 0.124], True)
    """
    if grad_drop and model.cfg.n_layers < 2:
        raise ModelError("GradDrop leaves nothing of a model of one layer; give grad_drop=False")
    plan = replace(_Plan.of(model, behaviour, over, positions), qk_fix=qk_fix, grad_drop=grad_drop)
    parts = [name for name, on in (("QK fix", qk_fix), ("GradDrop", grad_drop)) if on]
    options: SweepOptions = {"metric": metric, "direction": direction}
    name = f"AtP* ({', '.join(parts)})" if parts else "attribution patching"
    return _estimate(model, behaviour, plan, name, seed, options)


def verify(
    model: HookedModel,
    behaviour: Behaviour,
    estimate: Effects,
    *,
    top: int | None = 20,
    metric: MetricLike = None,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Agreement:
    """Patch the components with the largest estimates exactly, and a random sample of the others.

    The sample has as many components as were chosen, if so many are left. It is a control:
    components with low estimates should have small exact effects. Costs at most 2 * `top` patches.

    Args:
        model: A hooked model.
        behaviour: The behaviour of the estimate.
        estimate: Effects from `attribution` or `atp_star`.
        top: Number of components with the largest estimates to patch; None for all, which also
            gives the recall of the truly largest ones.
        metric: The metric of the estimate; None for the logit difference.
        seed: Seed of the random sample.
        memory: Bytes that may be used above the weights.
        progress: Function that is told how many components are done.

    Raises:
        EffectsError: The estimate is of another behaviour or metric, or `top` is below 1.
        KeyboardInterrupt: Ctrl-C was pressed. No partial result is returned, because the ranks of
            some components say nothing about all of them.

    Examples:
        >>> estimate = attribution_patching.attribution(model, ioi)
        >>> agreement = attribution_patching.verify(model, ioi, estimate, top=None)
        >>> agreement.n, agreement.recall, agreement.spearman > 0.8
        (8, 1.0, True)
    """
    refuse_another(behaviour, estimate, metric)
    values = estimate.values.flatten().double().numpy()
    if top is not None and top < 1:
        raise EffectsError(f"top {top} verifies nothing; give at least 1, or None for all places")
    order = np.argsort(-np.abs(values), kind="stable")
    chosen, left = order[:top], order[len(order) if top is None else top :]
    draw = np.random.Generator(np.random.Philox(key=seed))
    others = np.sort(draw.permutation(left)[: len(chosen)])
    names = estimate.names
    patched = [names[i] for i in (*chosen, *others)]
    layout = SweepLayout("several", ("patch",), (len(patched),), tuple(patched))
    options: SweepOptions = {
        "metric": metric,
        "direction": estimate.direction,
        "memory": memory,
        "progress": progress,
    }
    sets = [(parse(name),) for name in patched]
    with warnings.catch_warnings():
        # The estimate has already warned about components that the prompts do not vary, or they are
        # at positions before the prompts differ.
        warnings.simplefilter("ignore", UninformativeWarning)
        exact = patching.sweep(model, behaviour, sets, layout, seed=seed, **options)
    if exact.unfinished:
        raise KeyboardInterrupt
    estimated = torch.from_numpy(values[[*chosen, *others]]).float()
    return compared(
        exact,
        estimated,
        n_top=len(chosen),
        n_places=len(values),
        absolute=ABSOLUTE in estimate.notes,
        said=provenance(model, behaviour, seed=seed),
    )


def refuse_another(behaviour: Behaviour, estimate: Effects, metric: MetricLike) -> None:
    read = metrics.resolve(metric, behaviour).name
    if estimate.metric != read:
        raise EffectsError(
            f"the estimate is of the {estimate.metric}, and {read} would be verified"
        )
    if estimate.provenance.behaviour_sha256 != behaviour.sha256:
        raise EffectsError(
            f"the estimate is of behaviour {estimate.provenance.behaviour!r} with other prompts "
            f"than {behaviour.name!r}; estimate again"
        )


# --- the estimate --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Components of one kind, and the method that estimates their effects.

    Attributes:
        site: Site of the components.
        each: True if positions are estimated separately.
        n_layers: Number of layers.
        n_inner: Heads or neurons per layer; None for sites that exist once per layer.
        n_pos: Length of the prompts.
        qk_fix: Whether the QK fix is used.
        grad_drop: Whether GradDrop is used.
    """

    site: str
    each: bool
    n_layers: int
    n_inner: int | None  # heads or neurons of a layer
    n_pos: int
    qk_fix: bool = False
    grad_drop: bool = False

    @classmethod
    def of(
        cls, model: HookedModel, behaviour: Behaviour, over: str, positions: str | None
    ) -> "_Plan":
        patching.one_of("kind of place", over, tuple(OVER))
        positions = positions or ("each" if over == "residual" else "together")
        if positions not in POSITIONS:
            raise BehaviourError(
                f"no positions are called {positions!r}; give 'each' or 'together'"
            )
        cfg, site = model.cfg, OVER[over]
        n_inner = cfg.d_mlp if site == "neuron" else None
        if site in ("head", "q", "k", "v"):
            n_inner = heads_at(cfg, site)
        return cls(site, positions == "each", cfg.n_layers, n_inner, behaviour.n_pos)

    @property
    def fixed(self) -> bool:
        """True if the softmax is recomputed exactly: the QK fix, for queries and keys."""
        return self.qk_fix and self.site in ("q", "k")

    @property
    def layout(self) -> SweepLayout:
        kind = "neuron" if self.site == "neuron" else "head"
        axes, shape = ["layer"], [self.n_layers]
        if self.n_inner is not None:
            axes, shape = [*axes, kind], [*shape, self.n_inner]
        if self.each:
            axes, shape = [*axes, "pos"], [*shape, self.n_pos]
        places = (
            Component(self.site, **dict(zip(axes, index, strict=True)))
            for index in product(*map(range, shape))
        )
        return SweepLayout(self.site, tuple(axes), tuple(shape), tuple(map(str, places)))

    def hooks(self, model: HookedModel, layer: int) -> dict[str, str]:
        """Return the hook points that the estimate at a layer reads, by role."""
        block = f"blocks.{layer}."
        if not self.fixed:
            return {"place": block + SITES[self.site]}
        cfg = model.cfg
        if getattr(cfg, "sinks", "none") != "none":
            raise ModelError(
                "the QK fix recomputes softmax(q k) over the positions, and this model has sinks; "
                "estimate by `--method attribution`, or set qk_fix=False in Python"
            )
        # Queries and keys as they meet, normalised and rotated. The name of the kind of positions
        # is TransformerLens', so that this holds for its models as well.
        meet = "attn.hook_{}"
        if getattr(cfg, "positional_embedding_type", "") == "rotary":
            meet = "attn.hook_rot_{}"
        elif getattr(cfg, "qk_norm", False):
            meet = "attn.{}_norm.hook_out"
        return {
            "q": block + meet.format("q"),
            "k": block + meet.format("k"),
            "scores": f"{block}attn.hook_attn_scores",
            "pattern": f"{block}attn.hook_pattern",
        }


# The caller may be in inference mode, whose tensors cannot take part in a backward pass.
@torch.inference_mode(False)
def _estimate(
    model: HookedModel,
    behaviour: Behaviour,
    plan: _Plan,
    method: str,
    seed: int,
    options: SweepOptions,
) -> Effects:
    runs = PairedRuns.of(model, behaviour, seed=seed, **options)
    (metric,) = runs.metrics
    hooks = [plan.hooks(model, layer) for layer in range(plan.n_layers)]
    names = list(dict.fromkeys(name for one in hooks for name in one.values()))
    pieces, moved = [], torch.zeros(len(plan.layout.places), dtype=torch.float32)
    for found in grad_drop.along(runs, names, metric, dropping=plan.grad_drop):
        passes = [
            torch.stack([_changes(plan, found, slope, one) for one in hooks])
            for slope in found.gradients
        ]
        pieces.append(torch.stack(passes).flatten(1, -2).cpu())
        here = torch.stack([_distance(plan, found, one) for one in hooks]).flatten()
        moved = torch.maximum(moved, here.cpu())
    change = torch.cat(pieces, dim=-1)  # [pass place prompt]
    if plan.grad_drop:
        lost = 0 if plan.site == "resid_pre" else 1
        signs = change.mean(dim=-1, keepdim=True).sign()
        # The effect is change / whole. Multiplied by the sign of the whole (goal - start, possibly
        # negative), the absolute values stay positive after the division.
        signs = signs * float(np.sign(runs.goal.mean() - runs.start.mean()))
        change = (signs * change).sum(dim=0) / (plan.n_layers - lost)
    else:
        change = change[0]
    if not bool(change.abs().max() > 0):
        warnings.warn(
            f"no place of site {plan.site!r} differs between the runs and is read by the "
            f"{metric.name}: every estimate is 0",
            UninformativeWarning,
            stacklevel=3,
        )
    scores = torch.from_numpy(runs.start[:1])[:, None] + change.double()
    done = torch.ones(len(moved), dtype=torch.bool)
    as_patched = Patched(scores, torch.from_numpy(runs.start), done, moved.float(), peak_bytes=0)
    effects = runs.effects(as_patched, plan.layout)
    notes = [f"estimated by {method}: verify before believing", *effects.notes]
    return replace(effects, notes=(*notes, *([ABSOLUTE] if plan.grad_drop else [])))


def _changes(
    plan: _Plan, found: Slopes, slope: Mapping[str, Tensor], hooks: Mapping[str, str]
) -> Float[Tensor, "*inner prompt"]:
    """Return the estimated change of the metric at one layer, [head or neuron][pos] prompt.

    Outside the QK fix: the sum of (donor - receiver) * gradient over the numbers of the component.
    """
    if plan.fixed:
        change = _through_softmax(plan, found, slope, hooks)
    else:
        name = hooks["place"]
        change = (found.donor[name] - found.receiver[name]).double() * slope[name].double()
        if plan.site != "neuron":
            change = change.sum(dim=-1)
    change = change if plan.each else change.sum(dim=1, keepdim=True)
    # From [prompt pos inner] to [inner pos prompt]. A position axis of length 1 is dropped.
    change = change.movedim(0, -1).movedim(0, -2)
    return change if plan.each else change.squeeze(-2)


def _distance(plan: _Plan, found: Slopes, hooks: Mapping[str, str]) -> Tensor:
    """Return the largest difference between the two runs at each component of a layer."""
    name = hooks[plan.site if plan.fixed else "place"]
    apart = (found.donor[name] - found.receiver[name]).abs()
    apart = (apart if plan.site == "neuron" else apart.amax(dim=-1)).amax(dim=0)
    apart = apart if plan.each else apart.amax(dim=0, keepdim=True)
    apart = apart.movedim(0, -1)
    return (apart if plan.each else apart.squeeze(-1)).float()


def _through_softmax(
    plan: _Plan, found: Slopes, slope: Mapping[str, Tensor], hooks: Mapping[str, str]
) -> Float[Tensor, "prompt pos head"]:
    """Apply the QK fix: estimated change of the metric per prompt, position and head.

    If all keys of a head are patched together, every row of the pattern is recomputed, and the
    position axis has length 1.
    """
    # (queries, keys) after and before patching; the change of a score is the difference of q . k.
    pairs = (
        (found.donor, found.receiver) if plan.site == "q" else (found.receiver, found.donor),
        (found.receiver, found.receiver),
    )
    scores, gradient = found.receiver[hooks["scores"]], slope[hooks["pattern"]]
    after, before = (_dots(queries[hooks["q"]], keys[hooks["k"]]) for queries, keys in pairs)
    change = after - before
    if plan.site == "k" and plan.each:
        moved = qk_fix.by_column(scores, change, gradient)
    else:
        moved = qk_fix.by_row(scores, change, gradient)
    if plan.site == "k":
        if not plan.each:
            moved = moved.sum(dim=-1, keepdim=True)
        # Heads that share a key are patched together.
        moved = moved.unflatten(1, (plan.n_inner or 1, -1)).sum(dim=2)
    return moved.transpose(1, 2)


def _dots(
    q: Float[Tensor, "prompt query head d_head"], k: Float[Tensor, "prompt key shared d_head"]
) -> Float[Tensor, "prompt head query key"]:
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    return torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * q.shape[-1] ** -0.5
