"""Scheduler of the engine: scores many patched runs within a memory limit, interruptibly.

Patches are sorted by the position and layer where they leave the base run, and cut into chunks that
are large enough to keep the processor busy. Prompts are cut into slabs if the activations kept of
the base run would not fit into the allowed memory. For a model that is not a `train.model.GPT`, or
that has hooks of its own, every patch is one forward pass with hooks (`reference`), which is
slower.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from interp.components import OF_HEADS, SITES, Component, HookedModel
from interp.errors import ModelError
from interp.metrics import Metric
from interp.patching.engine import base_run, reference
from interp.patching.engine.base_run import BaseRun
from interp.patching.engine.later_layers import finish
from interp.patching.engine.memory import MEMORY, bytes_per_position, rows_in_flight, slabs
from interp.patching.engine.patched_layer import first_position, start
from interp.patching.engine.patched_scores import Found, Patched, averaged, spread
from train.errors import nearest
from train.model import GPT


__all__ = [
    "MEMORY",
    "Patched",
    "Progress",
    "Source",
    "Sources",
    "averaged",
    "engine_runs",
    "refuse_unknown",
    "run",
    "scores",
    "spread",
    "unpatched",
]

# Called with the name of the work, the amount done, and the total (None if unknown).
Progress = Callable[[str, int, int | None], None]
# Values to patch in, by hook name: for all prompts, or a function that makes those of a slab.
Source = Mapping[str, Tensor] | Callable[[slice], Mapping[str, Tensor]]


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
) -> Patched:
    """Score the prompts once per patch, with the patch's components set to their source values.

    Everything downstream of a patch is recomputed. Nothing is approximated; only the order of sums
    differs from a whole forward pass. After Ctrl-C the patches that are finished for every prompt
    are returned with an `InterruptedWarning`; if there are none, KeyboardInterrupt is raised.

    Args:
        model: Any hooked model. Only a `train.model.GPT` without hooks of its own is fast.
        tokens: The prompts.
        patches: For each patch, the components that are replaced together.
        source: Values to patch in, by hook name [prompt pos ...]: another run's activations, zeros
            or means. A function is called once per slab of prompts.
        metrics: Metrics to score, all in the same passes.
        shared: Number of leading positions known to be equal in source and base run.
        memory: Bytes that may be used above the weights and the source.
        progress: Function that is told how many patches are done.

    Raises:
        ModelError: A component does not exist in the model.
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
        return reference.reference_scores(
            model, tokens, patches, source, metrics, progress=progress
        )

    def slab_sources(slab: slice, base: BaseRun) -> Sources:
        here = source(slab) if callable(source) else {k: v[slab] for k, v in source.items()}
        return Sources(lambda i: here, sum(value.nbytes for value in here.values()))

    return run(
        model,  # type: ignore[arg-type]
        tokens,
        patches,
        slab_sources,
        metrics,
        shared=shared,
        memory=memory,
        progress=progress,
    )


@dataclass(frozen=True, eq=False)
class Sources:
    """Source values for the patches of one slab of prompts.

    Attributes:
        of: Function from the index of a patch to its source values, by hook name.
        held_bytes: Bytes of memory that the source values take.
    """

    of: Callable[[int], Mapping[str, Tensor]]
    held_bytes: int = 0


@torch.inference_mode()
def run(
    model: GPT,
    tokens: Int[Tensor, "prompt pos"],
    patches: Sequence[Sequence[Component]],
    sources: Callable[[slice, BaseRun], Sources],
    metrics: Sequence[Metric],
    *,
    shared: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    also_kept: Sequence[str] = (),
    added: Float[Tensor, "prompt pos d_model"] | None = None,
) -> Patched:
    """Score patches of a GPT as `scores` does, where every patch may have its own source.

    `sources` is called once per slab with the slice of prompts and their base run. The base run
    keeps the hooks in `also_kept` in addition to those that the patches need. `added` is added to
    the embeddings of the base run.
    """
    found = Found(len(metrics), len(patches), len(tokens))
    pieces = slabs(model, tokens, patches, memory, also_kept)
    with base_run.fast_fp32(model.device):
        for number, slab in enumerate(pieces):
            base = base_run.make(
                model,
                tokens[slab],
                patches,
                shared=shared,
                also_kept=also_kept,
                added=None if added is None else added[slab],
            )
            given = sources(slab, base)
            sweep = _Sweep(base, patches, given.of, metrics, slab, memory - given.held_bytes)
            found.start[:, slab] = sweep.unpatched().double().cpu()
            found.note_bytes(base, given.held_bytes + sweep.chunk_bytes)
            try:
                for indices, values, moved in sweep:
                    found.put(indices, slab, values, moved)
                    if progress:
                        done = number * len(patches) + found.in_slab
                        progress("patching", done, len(patches) * len(pieces))
            except KeyboardInterrupt:
                return found.interrupted(number == len(pieces) - 1)
            found.next_slab()
            # Freed here, or they would be in memory together with the runs of the next slab.
            del base, given, sweep
    return found.whole()


@torch.inference_mode()
def unpatched(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    metrics: Sequence[Metric],
    *,
    memory: int = MEMORY,
) -> Float[Tensor, "metric prompt"]:
    """Return the scores of the unpatched prompts.

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
            sweep = _Sweep(base, [], lambda i: {}, metrics, slab, memory)
            found.append(sweep.unpatched().double().cpu())
    return torch.cat(found, dim=1)


def engine_runs(model: HookedModel) -> bool:
    """Return True if the engine can replace the model: it is a GPT without hooks of its own.

    The engine does not run hooks that were added to the model.

    Examples:
        >>> engine.engine_runs(model)
        True
    """
    return isinstance(model, GPT) and not any(p.hooked for p in model.hook_dict.values())


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
        _refuse_misfit(place)
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
    heads = cfg.n_heads
    if place.site in ("k", "v"):
        heads = getattr(cfg, "n_key_value_heads", None) or heads
    yield "head", place.head, heads
    if place.neuron is not None:
        yield "neuron", place.neuron, cfg.d_mlp
    yield "key position", place.key, n_pos
    for pos in place.positions or ():
        yield "position", pos, n_pos


class _Sweep:
    """Iterator over the patches of one slab of prompts, in chunks.

    Yields the patches' indices, their scores [metric patch prompt], and the largest difference
    between source and base run for each.
    """

    def __init__(
        self,
        base: BaseRun,
        patches: Sequence[Sequence[Component]],
        source_of: Callable[[int], Mapping[str, Tensor]],
        metrics: Sequence[Metric],
        slab: slice,
        memory: int,
    ) -> None:
        self.base, self.patches, self.source_of, self.metrics = base, patches, source_of, metrics
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

    def unpatched(self) -> Float[Tensor, "metric prompt"]:
        return self._scored(self.base.final[None, :, self.reads])[:, 0]

    def __iter__(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        same = self.unpatched()[:, None]
        for chunk in self._chunks():
            starts, changed, moved = [], [], []
            for i in chunk:
                source = self.source_of(i)
                moved.append(self._moved(self.patches[i], source))
                # Not run: a patch whose values equal those of the base run, and one at positions
                # after all those that the metrics read. Their scores are the unpatched ones.
                if self.first[i] <= self.reads[-1] and bool(moved[-1]):
                    starts.append(start(self.base, self.patches[i], source))
                    changed.append(len(moved) - 1)
            scores = same.expand(-1, len(chunk), -1).clone()
            if starts:
                scores[:, changed] = self._scored(finish(self.base, starts, self.reads))
            yield chunk, scores, torch.stack(moved)

    def _moved(self, patch: Sequence[Component], source: Mapping[str, Tensor]) -> Tensor:
        """Return the largest absolute change that a patch makes to the values it replaces.

        In a causal model a patch at positions before `base.shared` changes nothing, since source
        and base run are equal there.
        """
        causal = self.base.block(0).attn.causal
        if causal and all(max(p.positions or (self.base.n_pos,)) < self.base.shared for p in patch):
            return self.base.final.new_zeros(())
        changes = [
            source[place.hook][place.index] - self.base.cache[place.hook][place.index]
            for place in patch
        ]
        return torch.stack([change.abs().max() for change in changes]).max()

    def _chunks(self) -> Iterator[list[int]]:
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

    def _scored(
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
        pieces = [
            metric.score(functional.linear(rows[i : i + step], weight), prompt[i : i + step])
            for i in range(0, len(rows), step)
        ]
        return torch.cat(pieces).unflatten(0, normed.shape[:2])
