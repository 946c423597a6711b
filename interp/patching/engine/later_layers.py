"""Forward pass of many patched runs through the remaining layers.

A patched run joins the pass at the layer and stage where it leaves the base run (`patched_layer`).
Runs with the same first changed position form a segment, a dense block [patch prompt pos d_model].
Work that treats positions separately (norms, projections, MLPs) is done for all segments in one
matrix product. Attention is computed per segment, against the base run's keys and values for the
positions before the segment. In the last layer queries and MLP are computed only for the positions
that the metrics read.

Invariant of a segment before layer l, stage s: `resid` holds, for every run that has joined, the
exact residual stream at `positions`; at all positions before `first` the run equals the base run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from interp.components import Component
from interp.patching.engine.base_run import BaseRun
from interp.patching.engine.patched_attention import (
    Sinks,
    attention_mask,
    attention_output,
    final_output,
    normalise_and_rotate,
    pattern,
    prepend_base,
    sinks_of,
    to_query_heads,
    weighted_values,
)
from interp.patching.engine.patched_layer import MID, PRE, Start, replace, replace_pattern
from train.model import Attention, Block


__all__ = ["finish"]


def finish(
    base: BaseRun, starts: Sequence[Start], reads: Sequence[int]
) -> Float[Tensor, "patch prompt read d_model"]:
    """Run all patched runs to the end and return their last residual stream at `reads`.

    At positions before a run's first changed position this is the base run's.
    """
    segments = {one.first: _Segment(base, starts, one.first, list(reads)) for one in starts}
    every = list(segments.values())
    for layer in range(min(one.layer for one in starts), base.n_layers):
        last = layer == base.n_layers - 1
        for segment in every:
            segment.enter(layer)
            segment.join(layer, PRE)
            segment.resid = segment.replace(segment.resid, layer, "resid_pre", segment.positions)
        _attend(base, [segment for segment in every if segment.rows], layer, last=last)
        for segment in every:
            if last:
                segment.only_reads()
            segment.join(layer, MID)
            segment.resid = segment.replace(segment.resid, layer, "resid_mid", segment.positions)
        active = [segment for segment in every if segment.rows and segment.positions]
        _run_mlp(base.block(layer), active, layer)
        for segment in every:
            segment.resid = segment.replace(segment.resid, layer, "resid_post", segment.positions)
            segment.keep_output(layer)
    found = base.final[:, list(reads)].expand(len(starts), -1, -1, -1).clone()
    for segment in segments.values():
        segment.join(base.n_layers, PRE)
        segment.only_reads()
        columns = [column for column, pos in enumerate(reads) if pos >= segment.first]
        at = [segment.positions.index(reads[column]) for column in columns]
        rows = torch.tensor(segment.rows, device=found.device)
        # Two index tensors with a slice between them put the indexed axes first, [patch read prompt
        # d_model], so the right-hand side is permuted to that order.
        found[rows[:, None], :, torch.tensor(columns, device=found.device)] = segment.resid[
            :, :, at
        ].permute(0, 2, 1, 3)
    return found


class _Segment:
    """Patched runs that leave the base run at the same position.

    Attributes:
        starts: All starts of the pass, also those of other segments.
        first: First position of the segment.
        waiting: Indices in `starts` of the segment's runs that have not joined yet.
        reads: Positions of the segment that the metrics read.
        positions: Positions that `resid` holds.
        rows: Indices in `starts` of the runs that have joined, in the order of `resid`.
        resid: Residual streams of those runs, [patch prompt pos d_model].
        outputs: Outputs of earlier layers that a U-Net adds again, by layer, as `resid`.
        attended: With a parallel residual, the output of the layer's attention, which is added
            together with that of its MLP; otherwise None.
    """

    def __init__(
        self, base: BaseRun, starts: Sequence[Start], first: int, reads: list[int]
    ) -> None:
        self.base, self.starts, self.first = base, starts, first
        sources = {base.model.cfg.skip_source(layer) for layer in range(base.n_layers)}
        self.sources = sorted(layer for layer in sources if layer is not None)
        self.outputs: dict[int, Tensor] = {}
        self.attended: Tensor | None = None
        self.waiting = [i for i, one in enumerate(starts) if one.first == first]
        self.reads = sorted({pos for pos in reads if pos >= first})
        self.positions = list(range(first, base.n_pos))
        self.rows: list[int] = []
        self.resid = base.final.new_zeros(
            0, base.n_prompts, len(self.positions), base.final.shape[2]
        )

    def join(self, layer: int, stage: str) -> None:
        """Append the runs that start at this layer and stage."""
        here = [
            i
            for i in self.waiting
            if (self.starts[i].layer, self.starts[i].stage) == (layer, stage)
        ]
        if not here:
            return
        at = [pos - self.first for pos in self.positions]
        self.resid = self._with([self.starts[i].resid for i in here], self.resid, at)
        for source in self.sources:
            if source < layer:
                kept = [self._output(i, source) for i in here]
                self.outputs[source] = self._with(kept, self.outputs.get(source), at)
        self.rows += here
        self.waiting = [i for i in self.waiting if i not in here]

    def _with(self, new: list[Tensor], before: Tensor | None, at: list[int]) -> Tensor:
        """Append the values of runs that join, at the positions `at` of the segment."""
        rows = torch.stack(new)
        rows = rows if len(at) == rows.shape[2] else rows[:, :, at]
        return torch.cat([before, rows]) if self.rows and before is not None else rows

    def _output(self, i: int, layer: int) -> Float[Tensor, "prompt pos d_model"]:
        """Return the output of an earlier layer in a run that joins now."""
        changed = self.starts[i].outputs.get(layer)
        return self.base.at(layer, "resid_post")[:, self.first :] if changed is None else changed

    def enter(self, layer: int) -> None:
        """Take the runs that have joined from the output of the layer before into this layer."""
        if self.rows:
            self.resid = self.base.enter(layer, self.resid, self.outputs, self.positions)

    def keep_output(self, layer: int) -> None:
        """Keep the output of a layer, if a U-Net adds it again."""
        if layer in self.sources and self.rows:
            self.outputs[layer] = self.resid

    def only_reads(self) -> None:
        """Drop every position that no metric reads, in the last layer."""
        self.sources, self.outputs = [], {}  # no layer follows that would add them
        if self.positions != self.reads:
            kept = [self.positions.index(pos) for pos in self.reads]
            self.resid, self.positions = self.resid[:, :, kept], self.reads

    def replace(self, value: Tensor, layer: int, site: str, positions: Sequence[int]) -> Tensor:
        """Return the value [patch prompt pos ...], patched in the runs that patch this site."""
        changed = False
        for i, places in self.asking(layer, site):
            if not changed:
                value, changed = value.clone(), True
            for place in places:
                replace(value[i], place, self.starts[self.rows[i]].source, positions)
        return value

    def asking(self, layer: int, site: str) -> list[tuple[int, Sequence[Component]]]:
        """Return the rows whose patch has components at this site, and those components."""
        wanted = [self.starts[row].later.get((layer, site), ()) for row in self.rows]
        return [(i, places) for i, places in enumerate(wanted) if places]


def _attend(base: BaseRun, segments: list[_Segment], layer: int, *, last: bool) -> None:
    """Take the segments through one layer's attention, to resid_mid.

    With a parallel residual there is none, and the segments keep what attention writes.
    """
    if not segments:
        return
    block = base.block(layer)
    attn, rotation = block.attn, base.model.rotation(base.n_pos)
    sinks = sinks_of(attn)
    normed = [block.ln1(one.resid) if block.pre else one.resid for one in segments]
    queries = [
        _kept(one, x, one.reads) if last else x for one, x in zip(segments, normed, strict=True)
    ]
    q, k, v = _projected(attn, queries, normed, last)
    if attn.value_residual is not None:
        v = [
            value + attn.value_residual(x, base.embedding_at(one.positions))
            for one, value, x in zip(segments, v, normed, strict=True)
        ]
    outputs = [
        _attention_of(base, one, layer, _HeadInputs(*wired, sinks, rotation))
        for one, wired in zip(segments, zip(queries, q, k, v, strict=True), strict=True)
    ]
    written = _together(lambda z: attn.out(z), [z.flatten(-2) for z in outputs])
    for segment, out in zip(segments, written, strict=True):
        if last:
            segment.only_reads()
        out = segment.replace(out, layer, "attn", segment.positions)
        if block.parallel:
            segment.attended = out
            continue
        total = segment.resid + out
        segment.resid = total if block.pre else block.ln1(total)


def _kept(segment: _Segment, x: Tensor, positions: Sequence[int]) -> Tensor:
    return x[:, :, [pos - segment.first for pos in positions]]


def _projected(
    attn: Attention, queries: list[Tensor], normed: list[Tensor], last: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return queries, keys and values of every segment, [patch prompt pos head d_head].

    In the last layer queries are computed for fewer positions than keys and values, so the fused
    projection is split into two products.
    """
    n_query = attn.widths[0]
    weight, bias = attn.qkv.weight, attn.qkv.bias
    if not last:
        wired = _together(lambda x: functional.linear(x, weight, bias), normed)
        split = [one.split(attn.widths, dim=-1) for one in wired]
    else:
        b_q, b_kv = (None, None) if bias is None else (bias[:n_query], bias[n_query:])
        q = _together(lambda x: functional.linear(x, weight[:n_query], b_q), queries)
        kv = _together(lambda x: functional.linear(x, weight[n_query:], b_kv), normed)
        split = [(one, *two.split(attn.widths[1:], dim=-1)) for one, two in zip(q, kv, strict=True)]
    q, k, v = ([one[part].unflatten(-1, (-1, attn.d_head)) for one in split] for part in range(3))
    return q, k, v


@dataclass(frozen=True, eq=False)
class _HeadInputs:
    """Inputs of one segment's attention: its normed stream at the queries, and q, k and v of it."""

    x: Float[Tensor, "patch prompt query d_model"]
    q: Float[Tensor, "patch prompt query head d_head"]
    k: Float[Tensor, "patch prompt pos kv_head d_head"]
    v: Float[Tensor, "patch prompt pos kv_head d_head"]
    sinks: Sinks | None
    rotation: tuple[Tensor, Tensor] | None

    def angles(self, positions: list[int]) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines of some positions."""
        if self.rotation is None:
            return None
        cos, sin = (one[positions] for one in self.rotation)
        return cos, sin


def _attention_of(
    base: BaseRun, segment: _Segment, layer: int, wired: _HeadInputs
) -> Float[Tensor, "patch prompt query head d_head"]:
    """Return z of one segment, with the patches of its runs inside attention applied.

    The order is that of the model: queries, keys and values before rotation, then patterns (the
    head's output is recomputed as pattern @ v), then z itself.
    """
    attn, last = base.block(layer).attn, layer == base.n_layers - 1
    queried, here = segment.reads if last else segment.positions, segment.positions
    q = segment.replace(wired.q, layer, "q", queried)
    k, v = (segment.replace(getattr(wired, site), layer, site, here) for site in "kv")
    q = normalise_and_rotate(attn, q, "q", wired.angles(queried))
    k = normalise_and_rotate(attn, k, "k", wired.angles(here))
    k = prepend_base(base.keys(layer)[:, : segment.first], k)
    v = prepend_base(base.at(layer, "v")[:, : segment.first], v)
    # k and v now cover positions 0 to n_pos - 1: before `first` the base run's, then the run's own.
    mask = attention_mask(attn, queried, base.n_pos, like=q)
    z = attention_output(q, k, v, mask, wired.sinks)
    for i, places in segment.asking(layer, "pattern"):
        attended, of_sinks = pattern(q[i], k[i], mask, wired.sinks)
        values = to_query_heads(v[i], attn.n_heads)
        for place in places:
            mine = attended[:, place.head]
            replace_pattern(mine, place, segment.starts[segment.rows[i]].source, queried)
        again = weighted_values(attended, values, of_sinks, wired.sinks)
        heads = sorted({place.head for place in places if place.head is not None})
        z[i, :, :, heads] = again[:, :, heads]
    if attn.exclusive is not None or attn.head_gate is not None:
        own = to_query_heads(v[:, :, queried], attn.n_heads)
        gates = None if attn.head_gate is None else attn.head_gate(wired.x)
        z = final_output(attn, z, own, gates)
    return segment.replace(z, layer, "head", queried)


def _run_mlp(block: Block, segments: list[_Segment], layer: int) -> None:
    """Take the segments through one layer's MLP, to resid_post, in one product."""
    if not segments:
        return
    mlp = block.mlp
    asking = any(segment.asking(layer, "neuron") for segment in segments)
    into = [block.ln2(one.resid) if block.pre else one.resid for one in segments]
    if asking:
        neurons = _together(mlp.neurons, into)
        neurons = [
            one.replace(x, layer, "neuron", one.positions)
            for one, x in zip(segments, neurons, strict=True)
        ]
        written = _together(mlp.down, neurons)
    else:
        written = _together(mlp, into)
    for segment, out in zip(segments, written, strict=True):
        out = segment.replace(out, layer, "mlp", segment.positions)
        total = segment.resid + out
        if segment.attended is not None:
            total, segment.attended = total + segment.attended, None
        segment.resid = total if block.pre else block.ln2(total)


def _together(work: Callable[[Tensor], Tensor], parts: list[Tensor]) -> list[Tensor]:
    """Apply `work` to the rows of all parts in one call, and split the result into the parts."""
    if len(parts) == 1:
        return [work(parts[0])]
    rows = work(torch.cat([part.flatten(0, -2) for part in parts]))
    sizes = [part[..., 0].numel() for part in parts]
    return [
        piece.unflatten(0, part.shape[:-1])
        for piece, part in zip(rows.split(sizes), parts, strict=True)
    ]
