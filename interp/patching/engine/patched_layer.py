"""The patched layer: where a patched run leaves the base run, and what the patch changes there.

The first residual stream that a patch changes is computed from the base run alone:

    head output z          resid_mid + (z' - z) W_O
    query, key, value,     z' of that head is recomputed from the base run's other inputs; then as
      pattern              for z
    attention output       resid_mid + (attn' - attn)
    neuron n               resid_post + (n' - n) W_out
    MLP output             resid_post + (mlp' - mlp)

(With post-norm, the norm is applied to the changed sum. With a parallel residual there is no
resid_mid, and every change is added to resid_post.) So a patched run can start in the middle of a
layer, and nothing before it is recomputed. Components of the patch in later stages or layers
are replaced when the run reaches them (`Start.later`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import Component
from interp.patching.engine.base_run import ATTENTION, BaseRun
from interp.patching.engine.patched_attention import (
    attention_mask,
    attention_output,
    final_output,
    normalise_and_rotate,
    pattern,
    sinks_of,
    weighted_values,
)
from train.short_repr import short_repr


__all__ = ["Start", "first_position", "replace", "start"]

PRE, MID = "pre", "mid"


@dataclass(frozen=True, eq=False)
class Start:
    """State of a patched run at the point where it leaves the base run.

    Attributes:
        layer: Layer to run next; the number of layers if only the unembedding is left.
        stage: "pre" if the whole of that layer is still to run, "mid" if its attention is done.
        first: First position that may differ from the base run.
        resid: Residual stream from position `first` on.
        later: Components still to be replaced on the way, by (layer, site).
        source: Values to replace them with, by hook name.
        outputs: Outputs of earlier layers that the patch changed and a U-Net adds again, by layer.
    """

    layer: int
    stage: str
    first: int
    resid: Float[Tensor, "prompt pos d_model"]
    later: Mapping[tuple[int, str], Sequence[Component]]
    source: Mapping[str, Tensor]
    outputs: Mapping[int, Float[Tensor, "prompt pos d_model"]]

    __repr__ = short_repr


def first_position(base: BaseRun, patch: Sequence[Component]) -> int:
    """Return the first position that a patch can change.

    A component at all positions changes nothing before `base.shared`, where source and base run
    first differ. In a bidirectional model the answer is 0.
    """
    if not base.block(0).attn.causal:
        return 0
    return min(base.shared if place.pos is None else min(place.positions or ()) for place in patch)


def start(base: BaseRun, patch: Sequence[Component], source: Mapping[str, Tensor]) -> Start:
    """Return the start of the run in which every component of `patch` is set from `source`.

    Of the components in the lowest patched layer, those of the earliest stage (resid_pre; attention
    and resid_mid; MLP and resid_post) are applied here, and all others are left for `later`. With a
    parallel residual attention belongs to the last stage.
    """
    layer, first = min(place.layer for place in patch), first_position(base, patch)
    here = [place for place in patch if place.layer == layer]
    sites = {place.site for place in here}
    if "resid_pre" in sites:
        now, stage, resid = {"resid_pre"}, PRE, base.at(layer, "resid_pre")[:, first:].clone()
    elif sites & {*ATTENTION, "resid_mid"} and not base.model.cfg.parallel_residual:
        now, stage = {*ATTENTION, "resid_mid"}, MID
        resid = _mid(base, [place for place in here if place.site in ATTENTION], source, first)
        resid = resid if resid is not None else base.at(layer, "resid_mid")[:, first:].clone()
    else:
        now, stage, layer = sites, PRE, layer + 1
        resid = _post(base, here, source, first)
    positions = range(first, base.n_pos)
    for place in here:
        if place.site.startswith("resid") and place.site in now:
            replace(resid, place, source, positions)
    outputs = {}
    if here[0].layer < layer < base.n_layers:
        outputs = {layer - 1: resid}
        resid = base.enter(layer, resid, outputs, positions)
    left = [place for place in patch if place not in here or place.site not in now]
    return Start(layer, stage, first, resid, _by_stop(left), source, outputs)


def replace(
    value: Float[Tensor, "prompt pos *rest"],
    place: Component,
    source: Mapping[str, Tensor],
    positions: Sequence[int],
) -> None:
    """Overwrite a component's entries in `value` by those of the source.

    `positions` are the positions that `value` holds; components at other positions are skipped.
    """
    wanted = positions if place.positions is None else place.positions
    column = {pos: i for i, pos in enumerate(positions)}
    pairs = [(column[pos], pos) for pos in wanted if pos in column]
    if not pairs:
        return
    to, fro = (list(side) for side in zip(*pairs, strict=True))
    part = place.head if place.neuron is None else place.neuron
    given = source[place.hook]
    if part is None:
        value[:, to] = given[:, fro].to(value)
    else:
        value[:, to, part] = given[:, fro, part].to(value)


def _by_stop(places: Iterable[Component]) -> dict[tuple[int, str], list[Component]]:
    found: dict[tuple[int, str], list[Component]] = {}
    for place in places:
        found.setdefault((place.layer, place.site), []).append(place)
    return found


def _mid(
    base: BaseRun, patch: Sequence[Component], source: Mapping[str, Tensor], first: int
) -> Float[Tensor, "prompt pos d_model"] | None:
    """Return resid_mid after patching attention; None if `patch` is empty."""
    change = _attention_change(base, patch, source, first)
    if change is None:
        return None
    layer = patch[0].layer
    block = base.block(layer)
    if block.pre:
        return base.at(layer, "resid_mid")[:, first:] + change
    return block.ln1(
        base.at(layer, "resid_pre")[:, first:] + base.at(layer, "attn")[:, first:] + change
    )


def _attention_change(
    base: BaseRun, patch: Sequence[Component], source: Mapping[str, Tensor], first: int
) -> Float[Tensor, "prompt pos d_model"] | None:
    """Return the change of attn_out caused by patching attention; None if `patch` is empty."""
    if not patch:
        return None
    layer = patch[0].layer
    change = _z_change(base, [place for place in patch if place.site != "attn"], source, first)
    whole = [place for place in patch if place.site == "attn"]
    if whole:
        attended = base.at(layer, "attn")[:, first:]
        attended = attended.clone() if change is None else attended + change
        for place in whole:
            replace(attended, place, source, range(first, base.n_pos))
        change = attended - base.at(layer, "attn")[:, first:]
    return change


def _z_change(
    base: BaseRun, patch: Sequence[Component], source: Mapping[str, Tensor], first: int
) -> Float[Tensor, "prompt pos d_model"] | None:
    """Return the change of attn_out caused by patching queries, keys, values, patterns and heads.

    The sum over patched heads of (z' - z) W_O. A patched key or value changes every query head that
    reads it (GQA).
    """
    if not patch:
        return None
    attn = base.block(patch[0].layer).attn
    positions = range(first, base.n_pos)
    shared_by = attn.n_heads // attn.n_key_value_heads
    total: Tensor | None = None
    wired = [place for place in patch if place.site != "head"]
    heads = {place.head for place in patch if place.site in ("head", "q", "pattern")}
    heads |= {
        place.head * shared_by + i
        for place in patch
        if place.site in ("k", "v") and place.head is not None
        for i in range(shared_by)
    }
    for head in sorted(one for one in heads if one is not None):
        mine = [p for p in wired if p.head == (head // shared_by if p.site in "kv" else head)]
        outputs = [p for p in patch if p.site == "head" and p.head == head]
        if mine:
            old, new = _remixed(base, head, mine, source, first)
            new = new.clone()
        else:
            old = base.at(patch[0].layer, "head")[:, first:, head]
            new = old.clone()
        for place in outputs:
            replace(
                new,
                Component("head", place.layer, pos=place.pos),
                _one_head(source, place),
                positions,
            )
        added = (new - old) @ attn.W_O[head]
        total = added if total is None else total + added
    return total


def _one_head(source: Mapping[str, Tensor], place: Component) -> dict[str, Tensor]:
    return {place.hook: source[place.hook][:, :, place.head]}


def _remixed(
    base: BaseRun, head: int, patch: Sequence[Component], source: Mapping[str, Tensor], first: int
) -> tuple[Float[Tensor, "prompt pos d_head"], Float[Tensor, "prompt pos d_head"]]:
    """Return z of one head in the base run, and with its query, key, value or pattern patched."""
    layer = patch[0].layer
    attn = base.block(layer).attn
    shared = head // (attn.n_heads // attn.n_key_value_heads)
    rotation, sinks = base.model.rotation(base.n_pos), sinks_of(attn)
    sinks = None if sinks is None else sinks.of(head)
    gates, only = base.gates(layer), slice(head, head + 1)
    gates = None if gates is None else gates[:, first:, only]
    everywhere = range(base.n_pos)

    def wired(site: str, part: int) -> Tensor | None:
        """Return the patched q, k or v of this head, before rotation; None if it is not patched.

        Its shape is [prompt pos 1 d_head].
        """
        places = [place for place in patch if place.site == site]
        if not places:
            return None
        value = base.at(layer, site)[:, :, part].clone()
        for place in places:
            replace(
                value, Component(site, layer, pos=place.pos), _one_head(source, place), everywhere
            )
        return value[:, :, None]

    def finished(y: Tensor, v: Tensor) -> Tensor:
        return final_output(attn, y, v[:, first:], gates, only)[:, :, 0]

    q = base.at(layer, "q")[:, :, head, None]
    q_new, k_new, v_new = wired("q", head), wired("k", shared), wired("v", shared)
    k = base.keys(layer)[:, :, shared, None]
    v = base.at(layer, "v")[:, :, shared, None]
    mask = attention_mask(attn, list(range(first, base.n_pos)), base.n_pos, like=q)
    old_q, new_q = (
        normalise_and_rotate(attn, one, "q", rotation)[:, first:]
        for one in (q, q if q_new is None else q_new)
    )
    k_new = k if k_new is None else normalise_and_rotate(attn, k_new, "k", rotation)
    v_new = v if v_new is None else v_new
    old = finished(attention_output(old_q, k, v, mask, sinks), v)
    patterns = [place for place in patch if place.site == "pattern"]
    if not patterns:
        return old, finished(attention_output(new_q, k_new, v_new, mask, sinks), v_new)
    attended, of_sinks = pattern(new_q, k_new, mask, sinks)
    for place in patterns:
        replace_pattern(attended[:, 0], place, source, range(first, base.n_pos))
    return old, finished(weighted_values(attended, v_new, of_sinks, sinks), v_new)


def replace_pattern(
    attended: Float[Tensor, "prompt query key"],
    place: Component,
    source: Mapping[str, Tensor],
    positions: Sequence[int],
) -> None:
    """Overwrite a head's attention pattern by the source's; rows are not renormalised to sum to 1.

    `positions` are the query positions that `attended` holds.
    """
    wanted = positions if place.positions is None else place.positions
    column = {pos: i for i, pos in enumerate(positions)}
    given = source[place.hook][:, place.head].to(attended)
    for pos in wanted:
        if pos not in column:
            continue
        if place.key is None:
            attended[:, column[pos]] = given[:, pos]
        else:
            attended[:, column[pos], place.key] = given[:, pos, place.key]


def _post(
    base: BaseRun, patch: Sequence[Component], source: Mapping[str, Tensor], first: int
) -> Float[Tensor, "prompt pos d_model"]:
    """Return resid_post after patching the MLP, or unchanged if only resid_post is patched.

    With a parallel residual, components of attention may be patched as well.
    """
    layer = patch[0].layer
    block = base.block(layer)
    attention = [place for place in patch if place.site in ATTENTION]
    attended = _attention_change(base, attention, source, first)
    change = _mlp_change(base, patch, source, first)
    if attended is not None:
        change = attended if change is None else attended + change
    if change is None:
        return base.at(layer, "resid_post")[:, first:].clone()
    if block.pre:
        return base.at(layer, "resid_post")[:, first:] + change
    written = base.at(layer, "mlp")[:, first:] + change
    return block.ln2(base.at(layer, "resid_mid")[:, first:] + written)


def _mlp_change(
    base: BaseRun, patch: Sequence[Component], source: Mapping[str, Tensor], first: int
) -> Float[Tensor, "prompt pos d_model"] | None:
    """Return the change of mlp_out caused by patching neurons or the whole output; None if none."""
    neurons = [place for place in patch if place.site == "neuron"]
    whole = [place for place in patch if place.site == "mlp"]
    if not neurons and not whole:
        return None
    layer, positions = patch[0].layer, range(first, base.n_pos)
    weight = base.block(layer).mlp.down.weight
    change = torch.zeros_like(base.final[:, first:])
    for place in neurons:
        old = base.at(layer, "neuron")[:, first:, place.neuron]
        new = old[..., None].clone()
        one = {place.hook: source[place.hook][:, :, place.neuron, None]}
        replace(new, Component("neuron", layer, pos=place.pos), one, positions)
        change += (new[..., 0] - old)[..., None] * weight[:, place.neuron]
    if whole:
        written = base.at(layer, "mlp")[:, first:]
        changed = written + change
        for place in whole:
            replace(changed, place, source, positions)
        change = changed - written
    return change
