"""Reference implementation of patching: one whole forward pass with hooks per patch.

It works for any hooked model, and the engine is tested against it.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from interp.components import Component, HookedModel, device_of
from interp.errors import InterruptedWarning
from interp.metrics import Metric
from interp.patching.engine.patched_scores import Patched


__all__ = ["reference_scores"]


@torch.inference_mode()
def reference_scores(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    patches: Sequence[Sequence[Component]],
    source: Mapping[str, Tensor] | Callable[[slice], Mapping[str, Tensor]],
    metrics: Sequence[Metric],
    *,
    progress: Callable[[str, int, int | None], None] | None = None,
):
    """Score patches with one forward pass each; arguments and result as `scheduler.scores`."""
    tokens = tokens.to(device_of(model))
    given = source(slice(0, len(tokens))) if callable(source) else source
    hooks = sorted({place.hook for patch in patches for place in patch})
    logits, cache = model.run_with_cache(tokens, names_filter=hooks)
    base = {name: cache[name] for name in hooks}
    start = torch.stack([metric.of_logits(logits) for metric in metrics])
    found = torch.full(
        (len(metrics), len(patches), len(tokens)), float("nan"), dtype=torch.float32
    ).double()
    moved, done = (
        torch.zeros(len(patches), dtype=torch.float32),
        torch.zeros(len(patches), dtype=torch.bool),
    )
    for i, patch in enumerate(patches):
        try:
            logits = model.run_with_hooks(tokens, fwd_hooks=_hooks(patch, given))
            scored = torch.stack([metric.of_logits(logits) for metric in metrics])
            moved[i] = max(_moved(place, given, base) for place in patch)
            found[:, i], done[i] = scored.double().cpu(), True
            if progress:
                progress("patching", i + 1, len(patches))
        except KeyboardInterrupt:
            if not done.any():
                raise
            found[:, ~done] = float("nan")
            warnings.warn(
                f"interrupted: {int(done.sum())} of {len(patches)} patches were run, the others "
                "are nan",
                InterruptedWarning,
                stacklevel=4,
            )
            break
    return Patched(found, start.double().cpu(), done, moved, peak_bytes=0)


def _hooks(patch: Sequence[Component], source: Mapping[str, Tensor]) -> list[tuple[str, Callable]]:
    by_hook: dict[str, list[Component]] = {}
    for place in patch:
        by_hook.setdefault(place.hook, []).append(place)
    return [(hook, _replacing(places, source[hook])) for hook, places in by_hook.items()]


def _replacing(places: Sequence[Component], given: Tensor) -> Callable[[Tensor, object], Tensor]:
    def replace(value: Tensor, hook: object) -> Tensor:
        # Copied because the value may be a view of a tensor that is used after the pass.
        value = value.clone()
        for place in places:
            value[place.index] = given[place.index].to(value)
        return value

    return replace


def _moved(place: Component, source: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> float:
    return float((source[place.hook][place.index] - base[place.hook][place.index]).abs().max())
