"""Scheduler of the engine: scores many patched runs within a memory limit, interruptibly.

Patches are sorted by the position and layer where they leave the base run, and cut into chunks that
are large enough to keep the processor busy. Prompts are cut into slabs if the activations kept of
the base run would not fit into the allowed memory. For a model that is not a `train.model.GPT`, or
that has hooks of its own, every patch is one forward pass with hooks (`reference`), which is
slower.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from interp.components import (
    OF_HEADS,
    SITES,
    Component,
    HookedModel,
    heads_at,
    refuse_dead_site,
)
from interp.errors import ModelError
from interp.metrics import Metric
from interp.patching.engine import base_run, reference
from interp.patching.engine.base_run import BaseRun
from interp.patching.engine.later_layers import finish
from interp.patching.engine.memory import MEMORY, bytes_per_position, rows_in_flight, slabs
from interp.patching.engine.patched_layer import first_position, start
from interp.patching.engine.patched_scores import Found, Patched, averaged, spread
from train.errors import nearest
from train.model import GPT, attachments
from train.progress import Progress
from train.short_repr import short_repr


__all__ = [
    "MEMORY",
    "DerivedSource",
    "Patched",
    "Source",
    "averaged",
    "engine_runs",
    "refuse_unknown",
    "scores",
    "source_of",
    "spread",
    "unpatched",
]

# Values to patch in, by hook name: for all prompts, or a function that makes those of a slab.
Source = Mapping[str, Tensor] | Callable[[slice], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class DerivedSource:
    """Source values that are computed for each patch from the base run, as for paths.

    Attributes:
        reads: Hook names that the base run must keep for it.
        of: Function from the base run, the index of a patch and the source values of the slab to
            the values to patch in, by hook name.
    """

    reads: Sequence[str]
    of: Callable[[BaseRun, int, Mapping[str, Tensor]], Mapping[str, Tensor]]

    __repr__ = short_repr


@torch.inference_mode()
def scores(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    patches: Sequence[Sequence[Component]],
    source: Source,
    metrics: Sequence[Metric],
    *,
    shared: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    derived: DerivedSource | None = None,
    added: Float[Tensor, "prompt pos d_model"] | None = None,
) -> Patched:
    """Score the prompts once per patch, with the patch's components set to their source values.

    Everything downstream of a patch is recomputed. Nothing is approximated; only the order of sums
    differs from a whole forward pass. After Ctrl-C the patches that are finished for every prompt
    are returned with an `InterruptedWarning`; if there are none, KeyboardInterrupt is raised.

    Args:
        model: Any hooked model. Only a `train.model.GPT` without hooks of its own is fast, and only
            for it `derived` and `added` are possible.
        tokens: The prompts.
        patches: For each patch, the components that are replaced together.
        source: Values to patch in, by hook name [prompt pos ...]: another run's activations, zeros
            or means. A function is called once per slab of prompts.
        metrics: Metrics to score, all in the same passes.
        shared: Number of leading positions known to be equal in source and base run.
        memory: Bytes that may be used above the weights and the source.
        progress: Function that is told how many patches are done.
        derived: Rule that computes each patch's values from the source and the base run.
        added: Values that are added to the embeddings of the prompts.

    Raises:
        ModelError: A component does not exist in the model, or the model has hooks of its own and
            `derived` or `added` is given.
        BehaviourError: A metric reads positions outside the prompts, or values at hook points.
        BudgetError: Not even one patch of one prompt fits into the memory.

    Examples:
        >>> patches = [[components.parse("L0H1")], [components.parse("L1.mlp")]]
        >>> hooks = ["blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"]
        >>> source = engine.activations(model, ioi.clean, hooks)
        >>> metric = metrics.logit_difference(ioi)
        >>> patched = engine.scores(model, ioi.corrupt, patches, source, [metric])
        >>> tuple(patched.scores.shape), patched.done.tolist()
        ((1, 2, 64), [True, True])
    """
    refuse_unknown(model, patches, tokens.shape[1])
    if not engine_runs(model):
        if derived is not None or added is not None:
            raise ModelError(
                "paths and noise need a GPT without retention and without hooks of its own, and "
                f"this is a {type(model).__name__}; remove its hooks, or load it with "
                "interp.models.load"
            )
        return reference.reference_scores(
            model, tokens, patches, source, metrics, progress=progress
        )
    assert isinstance(model, GPT)
    reads = () if derived is None else derived.reads
    found = Found(len(metrics), len(patches), len(tokens))
    pieces = slabs(model, tokens, patches, memory, reads)
    with base_run.fast_fp32(model.device):
        for number, slab in enumerate(pieces):
            base = base_run.make(
                model,
                tokens[slab],
                patches,
                shared=shared,
                also_kept=reads,
                added=None if added is None else added[slab],
            )
            values = source(slab) if callable(source) else {k: v[slab] for k, v in source.items()}
            held = sum(value.nbytes for value in values.values())
            batch = _PatchedBatch(base, patches, metrics, slab, memory - held)
            found.start[:, slab] = batch.unpatched.double().cpu()
            found.note_bytes(base, held + batch.chunk_bytes)
            try:
                for chunk in batch.chunks():
                    starts, changed, moved, mine = [], [], [], values
                    for i in chunk:
                        if derived is not None:
                            mine = derived.of(base, i, values)
                        moved.append(batch.moved(i, mine))
                        if bool(moved[-1]) and batch.is_read(i):
                            starts.append(start(base, patches[i], mine))
                            changed.append(len(moved) - 1)
                    # A patch that changes nothing that is read has the unpatched scores.
                    scored = batch.unpatched[:, None].repeat(1, len(chunk), 1)
                    if starts:
                        scored[:, changed] = batch.scored(finish(base, starts, batch.reads))
                    found.put(chunk, slab, scored, torch.stack(moved))
                    # Freed here, or they would still be in memory when the next slab is run.
                    del mine, starts, scored
                    if progress:
                        done = number * len(patches) + found.in_slab
                        progress("patching", done, len(patches) * len(pieces))
            except KeyboardInterrupt:
                return found.interrupted(number == len(pieces) - 1)
            found.next_slab()
            # Freed here, or they would be in memory together with the runs of the next slab.
            del base, values, batch
    return found.whole()


def source_of(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    patches: Sequence[Sequence[Component]],
) -> Callable[[slice], dict[str, Tensor]]:
    """Return a function that computes the patched components' activations on a slab of `tokens`.

    It raises a ModelError if a hook never fires in a model that is not run by the engine.

    Examples:
        >>> source = engine.source_of(model, ioi.clean, [[components.parse("L0H1")]])
        >>> z = source(slice(0, 2))["blocks.0.attn.hook_z"]
        >>> tuple(z.shape)  # prompt, position, head, d_head
        (2, 15, 4, 32)
    """
    names = sorted({place.hook for patch in patches for place in patch})

    def run(prompts: slice) -> dict[str, Tensor]:
        if engine_runs(model):
            assert isinstance(model, GPT)
            return base_run.activations(model, tokens[prompts], names)
        _, cache = model.run_with_cache(tokens[prompts], names_filter=names)
        missing = [name for name in names if name not in cache]
        if missing:
            raise ModelError(
                f"a hook at {missing[0]} never fired in this {type(model).__name__}, so what "
                "is there cannot be patched"
            )
        return {name: cache[name] for name in names}

    return run


@torch.inference_mode()
def unpatched(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    metrics: Sequence[Metric],
    *,
    memory: int = MEMORY,
) -> Float[Tensor, "metric prompt"]:
    """Return the scores of the unpatched prompts.

    Raises:
        BehaviourError: A metric reads positions outside the prompts, or values at hook points.

    Examples:
        >>> scores = engine.unpatched(model, ioi.clean, [metrics.logit_difference(ioi)])
        >>> tuple(scores.shape)
        (1, 64)
    """
    if not engine_runs(model):
        logits = model(tokens)
        return torch.stack([metric.of_logits(logits) for metric in metrics]).double().cpu()
    assert isinstance(model, GPT)
    found = []
    with base_run.fast_fp32(model.device):
        for slab in slabs(model, tokens, [], memory, ()):
            base = base_run.make(model, tokens[slab], [])
            found.append(_PatchedBatch(base, [], metrics, slab, memory).unpatched.double().cpu())
    return torch.cat(found, dim=1)


def engine_runs(model: HookedModel) -> bool:
    """Return True if the engine can replace the model: it is a GPT on which nothing hangs.

    The engine runs nothing that was added to a model (`train.model.attachments`: hooks, adapters,
    replaced modules), and no attention whose weights are generated from the input (retention):
    there a patch changes the weights of later positions.

    Examples:
        >>> engine.engine_runs(model)
        True
    """
    if not isinstance(model, GPT) or model.cfg.retention:
        return False
    return not attachments(model)


def refuse_unknown(model: HookedModel, patches: Sequence[Sequence[Component]], n_pos: int) -> None:
    """Raise a ModelError if a component does not exist in the model or the prompts.

    Examples:
        >>> engine.refuse_unknown(model, [[components.parse("L1H3")]], n_pos=15)
    """
    if any(not patch for patch in patches):
        raise ModelError("a patch without a place changes nothing; name one")
    for place in {place for patch in patches for place in patch}:
        if place.site not in SITES:
            raise ModelError(f"no site is called {place.site!r}{nearest(place.site, SITES)}")
        # TransformerLens' name for a parallel residual; ours are properties of GPTConfig.
        if place.site == "resid_mid" and getattr(model.cfg, "parallel_attn_mlp", False):
            raise ModelError(
                f"{place} does not exist: attention and MLP of a layer read the same stream in "
                "this model (parallel residual), so there is none between them; take resid_pre or "
                "attn"
            )
        _refuse_misfit(place)
        refuse_dead_site(model, place)
        for what, index, size in _sizes(model, place, n_pos):
            if index is not None and not 0 <= index < size:
                raise ModelError(f"{place} is {what} {index} of a model that has {size}, from 0")


def _refuse_misfit(place: Component) -> None:
    """Raise a ModelError if a component lacks an index that its site needs, or has a wrong one."""
    belongs = {"head": OF_HEADS, "neuron": ("neuron",), "key": ("pattern",)}
    for field, sites in belongs.items():
        given = getattr(place, field) is not None
        if given and place.site not in sites:
            raise ModelError(f"{place.site} has no {field}, and {getattr(place, field)} was given")
        if not given and place.site in sites and field != "key":
            raise ModelError(f"{place} needs a {field}: a {place.site} belongs to one")
    if place.pos == ():
        raise ModelError(f"{place} is at no position; leave positions out for all of them")


def _sizes(
    model: HookedModel, place: Component, n_pos: int
) -> Iterator[tuple[str, int | None, int]]:
    cfg = model.cfg
    yield "layer", place.layer, cfg.n_layers
    yield "head", place.head, heads_at(cfg, place.site)
    if place.neuron is not None:
        yield "neuron", place.neuron, cfg.d_mlp
    yield "key position", place.key, n_pos
    for pos in place.positions or ():
        yield "position", pos, n_pos


class _PatchedBatch:
    """Patches of one slab of prompts: how they are cut into chunks and scored.

    Attributes:
        reads: Positions that the metrics read, in order.
        first: First position that each patch can change.
        unpatched: Scores of the base run.
        chunk_bytes: Memory that one chunk takes.
    """

    def __init__(
        self,
        base: BaseRun,
        patches: Sequence[Sequence[Component]],
        metrics: Sequence[Metric],
        slab: slice,
        memory: int,
    ) -> None:
        self.base, self.patches, self.metrics = base, patches, metrics
        self.prompts = torch.arange(slab.start, slab.stop, device=base.final.device)
        self.reads = sorted({pos for one in metrics for pos in one.reads(base.n_pos)})
        self.first = [first_position(base, patch) for patch in patches]
        # Positions per chunk: as many as fit beside the base run, at most `rows_in_flight`, and at
        # least those of one patch, which `slabs` has made sure to fit.
        held = sum(t.nbytes for t in base.cache.values()) + base.final.nbytes
        each = bytes_per_position(base.model)
        rows = base.final[..., 0].numel()  # of one patch from the first position on
        self.rows = max(min(rows_in_flight(base.model), (memory - held) // each), rows)
        self.chunk_bytes = max(min(self.rows, len(patches) * rows), rows) * each
        self.unpatched: Float[Tensor, "metric prompt"] = self.scored(
            base.final[None, :, self.reads]
        )[:, 0]

    def is_read(self, i: int) -> bool:
        """Return False if a patch lies at positions after all those that the metrics read."""
        return self.first[i] <= self.reads[-1]

    def moved(self, i: int, source: Mapping[str, Tensor]) -> Tensor:
        """Return the largest absolute change that a patch makes to the values it replaces.

        In a causal model a patch at positions before `base.shared` changes nothing, since source
        and base run are equal there.
        """
        patch, base = self.patches[i], self.base
        causal = base.block(0).attn.causal
        if causal and all(max(p.positions or (base.n_pos,)) < base.shared for p in patch):
            return base.final.new_zeros(())
        changes = [
            source[place.hook][place.index] - base.cache[place.hook][place.index] for place in patch
        ]
        return torch.stack([change.abs().max() for change in changes]).max()

    def chunks(self) -> Iterator[list[int]]:
        """Yield the indices of the patches of each chunk.

        A chunk has at most `self.rows` positions, or a single patch. Patches are sorted by first
        changed position, because runs with the same one form a dense segment, and then by layer,
        because a chunk runs from its lowest layer on.
        """
        lowest = [min(place.layer for place in patch) for patch in self.patches]
        order = sorted(range(len(self.patches)), key=lambda i: (self.first[i], lowest[i]))
        chunk, size = [], 0
        for i in order:
            rows = self.base.n_prompts * (self.base.n_pos - self.first[i])
            if chunk and size + rows > self.rows:
                yield chunk
                chunk, size = [], 0
            chunk.append(i)
            size += rows
        if chunk:
            yield chunk

    def scored(
        self, resid: Float[Tensor, "patch prompt read d_model"]
    ) -> Float[Tensor, "metric patch prompt"]:
        """Return every metric of final residual streams, unembedding only what it reads."""
        model = self.base.model
        normed = model.ln_final(resid) if model.cfg.norm_placement == "pre" else resid
        return torch.stack([self._one(metric, normed) for metric in self.metrics])

    def _one(
        self, metric: Metric, normed: Float[Tensor, "patch prompt read d_model"]
    ) -> Float[Tensor, "patch prompt"]:
        # Row r of `rows` is patch r // n_prompts and prompt r % n_prompts of the slab.
        at = [self.reads.index(pos) for pos in metric.reads(self.base.n_pos)]
        rows = normed[:, :, at].flatten(0, 1)
        prompt = self.prompts.repeat(len(normed))
        weight = self.base.model.W_U.T
        if metric.columns is not None:
            weight = weight[metric.columns.to(weight.device)]
        # 64 MB of logits at a time: for all rows and the whole vocabulary, the logits would be the
        # largest tensor of all.
        step = max((64 << 20) // (4 * len(at) * len(weight)), 1)
        # Positions and columns are cut before the unembedding, so all that are left are read.
        cut = replace(metric, positions=None, columns=None)
        pieces = [
            cut.of_logits(functional.linear(rows[i : i + step], weight), prompt[i : i + step])
            for i in range(0, len(rows), step)
        ]
        return torch.cat(pieces).unflatten(0, normed.shape[:2])
