"""Path patching: effects of a head through one query, key or value of a later head, or the logits.

If a head's output is patched, everything after it reacts. If a *path* is patched, only the chosen
receivers read the patched output, and all other components read the original one (Wang et al. 2022,
https://arxiv.org/abs/2211.00593, section 3.1). `senders` scores all heads as senders to given
receivers; `receivers` scores all heads as receivers of a given sender.

`mlps="frozen"` keeps the direct path only. `mlps="recomputed"` also lets the MLPs between sender
and receiver react, which is the path of Wang et al. Attention between them is frozen in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, heads_at, parse, parse_all, read_weights
from interp.errors import ModelError
from interp.patching import engine, paired_runs
from interp.patching.effects import Effects
from interp.patching.engine import BaseRun, Path
from interp.patching.paired_runs import PairedRuns, SweepLayout, SweepOptions
from train import progress as bars
from train.model import attachments


__all__ = ["receivers", "senders"]

LOGITS = "logits"
MLPS = ("frozen", "recomputed")
READERS = ("q", "k", "v")


def senders(
    model: HookedModel,
    behaviour: Behaviour,
    to: str | Component | Sequence[str | Component] = LOGITS,
    *,
    mlps: str = "frozen",
    **options: Unpack[SweepOptions],
) -> Effects:
    """Measure the effect of every head through the receivers `to`, taken together, and only those.

    Args:
        model: A pre-norm GPT without hooks of its own.
        behaviour: The behaviour to score.
        to: "logits", or queries, keys and values such as "L1H0.q".
        mlps: Treatment of MLPs between sender and receiver: "frozen" or "recomputed".
        options: Options of every sweep; see `SweepOptions`.

    Returns:
        Effects over (layer, head) of the sender. A head reaches only receivers in later layers; if
        there are none, its effect is 0.

    Raises:
        ModelError: A receiver is not a query, key or value at all positions; no sender is below a
            receiver; the model has hooks of its own; or it is post-norm, where the output of a head
            is not a term of the residual sum. Other errors are those of
            `interp.patching.activation_patching`.

    Examples:
        >>> effects = patching.senders(model, ioi, "logits", mlps="recomputed")
        >>> effects.top(2), effects.through
        ([L0H1 0.942, L0H3 0.0752], 'logits, MLPs recomputed')
    """
    paired_runs.refuse_misuse(model, behaviour)
    heard = _receivers(to)
    cfg = model.cfg
    paths = [
        Path(Component("head", layer, head=head), tuple(r for r in heard if r.layer > layer))
        for layer in range(cfg.n_layers)
        for head in range(cfg.n_heads)
    ]
    reach = [i for i, path in enumerate(paths) if path.receivers or not heard]
    readers = ", ".join(map(str, heard)) or LOGITS
    shape = (cfg.n_layers, cfg.n_heads)
    names = tuple(str(path.sender) for path in paths)
    layout = SweepLayout("head", ("layer", "head"), shape, names, through=f"{readers}, MLPs {mlps}")
    return _effects(model, behaviour, _Asked(paths, reach, layout, mlps), options)


def receivers(
    model: HookedModel,
    behaviour: Behaviour,
    sender: str | Component,
    *,
    part: str = "q",
    mlps: str = "frozen",
    **options: Unpack[SweepOptions],
) -> Effects:
    """Measure the effect of one head through the query, key or value of every later head in turn.

    Args:
        model: A pre-norm GPT without hooks of its own.
        behaviour: The behaviour to score.
        sender: The sending head, such as "L0H2".
        part: Receiving part of each head: "q", "k" or "v".
        mlps: Treatment of MLPs between sender and receiver: "frozen" or "recomputed".
        options: Options of every sweep; see `SweepOptions`.

    Returns:
        Effects over (layer, head) of the receiver; 0 in the sender's layer and below.

    Raises:
        ModelError: As `senders`, or the sender is not a head at all positions.

    Examples:
        >>> effects = patching.receivers(model, ioi, "L0H1", part="v")
        >>> effects.axes, effects.through
        (('layer', 'head'), 'L0H1, MLPs frozen')
    """
    paired_runs.refuse_misuse(model, behaviour)
    paired_runs.one_of("part", part, READERS)
    spoken = parse(sender) if isinstance(sender, str) else sender
    if spoken.site != "head" or spoken.pos is not None:
        raise ModelError(f"{spoken} is no sender: name a head, such as L0H2")
    cfg = model.cfg
    n_heads = heads_at(cfg, part)
    places = [
        Component(part, layer, head=h) for layer in range(cfg.n_layers) for h in range(n_heads)
    ]
    paths = [Path(spoken, (place,)) for place in places]
    reach = [i for i, place in enumerate(places) if place.layer > spoken.layer]
    shape = (cfg.n_layers, n_heads)
    names = tuple(map(str, places))
    layout = SweepLayout(part, ("layer", "head"), shape, names, through=f"{spoken}, MLPs {mlps}")
    return _effects(model, behaviour, _Asked(paths, reach, layout, mlps), options)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Paths in the order of the result.

    Attributes:
        paths: One path per entry of the result.
        reach: Indices of the paths that reach a receiver; the others have an effect of 0.
        layout: Layout of the result.
        mlps: "frozen" or "recomputed".
    """

    paths: list[Path]
    reach: list[int]
    layout: SweepLayout
    mlps: str


def _effects(
    model: HookedModel, behaviour: Behaviour, asked: _Asked, options: SweepOptions
) -> Effects:
    paired_runs.one_of("treatment of MLPs", asked.mlps, MLPS)
    paths, mlps = [asked.paths[i] for i in asked.reach], asked.mlps == "recomputed"
    model = read_weights(model, "path patching")
    if model.cfg.no_residual_sum:
        raise ModelError(
            "paths are followed through a residual stream that is a sum, and in this model "
            f"{model.cfg.no_residual_sum}; patch its components instead"
        )
    if model.cfg.value_residual:
        raise ModelError(
            "paths into values are not followed in a model with value_residual; patch its "
            "components instead"
        )
    if not engine.engine_runs(model):
        raise ModelError(
            f"{attachments(model)[0]}, which paths do not run; take the model without it"
        )
    if not paths:
        raise ModelError("no path leads there: a receiver lies in a later layer than its sender")
    patches = [engine.patch_of(path, model.cfg.n_layers) for path in paths]
    every = [[path.sender, *patch] for path, patch in zip(paths, patches, strict=True)]
    engine.refuse_unknown(model, every, behaviour.n_pos)
    runs = PairedRuns.of(model, behaviour, **options)
    senders = [[path.sender] for path in paths]

    def arriving(base: BaseRun, i: int, donated: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return engine.arriving(base, paths[i], donated, mlps=mlps)

    derived = engine.DerivedSource(engine.hooks_read(model, paths, mlps=mlps), arriving)
    with bars.shown(behaviour.name, runs.progress) as told:
        found = runs.patching(patches, senders)(progress=told, derived=derived)
    whole = engine.spread(found, asked.reach, len(asked.paths))
    return runs.effects(whole, asked.layout)


def _receivers(to: str | Component | Sequence[str | Component]) -> list[Component]:
    given = [to] if isinstance(to, str | Component) else list(to)
    if given == [LOGITS]:
        return []
    places = parse_all(given)
    wrong = [place for place in places if place.site not in READERS or place.pos is not None]
    if wrong or not places:
        raise ModelError(
            f"{wrong[0] if wrong else 'nothing'} is no receiver; name queries, keys and values "
            "such as L1H0.q, or 'logits'"
        )
    return places
