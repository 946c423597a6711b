"""Where a score leans: activations of two runs, and the gradient of the score in one of them.

The first-order estimate of patching a place is (source - here) * gradient, summed over what the
place holds; two forward passes and one backward pass give it for all places at once (Nanda 2023,
https://www.neelnanda.io/mechanistic-interpretability/attribution-patching).

GradDrop (Kramar et al. 2024, https://arxiv.org/abs/2403.00745, section 3.1) repeats the backward
pass once a layer, each time with the gradient through what that layer adds to the residual stream
set to zero: where a direct and an indirect effect cancel, dropping one shows the other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.components import HookedModel
from interp.errors import ModelError
from interp.metrics import Metric
from interp.patching import PairedRuns


__all__ = ["Slopes", "along"]

# Tokens whose activations are kept for a backward pass at a time; one prompt is the least.
TOKENS = 2048
# What a layer adds to the residual stream.
WRITES = ("hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True, eq=False)
class Slopes:
    """Some prompts of a contrast, by hook name.

    Attributes:
        prompts: Which.
        here: Activations where the gradient was taken.
        there: Activations of the source run.
        gradients: Of the sum of the scores, one mapping a backward pass.
    """

    prompts: slice
    here: Mapping[str, Tensor]
    there: Mapping[str, Tensor]
    gradients: Sequence[Mapping[str, Tensor]]


def along(
    model: HookedModel,
    runs: PairedRuns,
    names: Sequence[str],
    metric: Metric,
    *,
    dropping: bool = False,
) -> Iterator[Slopes]:
    """Slopes at hook points, some prompts at a time. Not to be called in inference mode.

    Args:
        model: A hooked model; its weights collect no gradient.
        runs: The two sets of prompts.
        names: Hook points, all upstream of the metric or not: where it does not depend, 0.
        metric: Whose gradient; differentiable.
        dropping: GradDrop: one backward pass a layer, in order, instead of a single whole one.

    Raises:
        ModelError: The scores do not depend on any of the hook points.
    """
    n_prompts, n_pos = runs.here.shape
    step = max(TOKENS // n_pos, 1)
    for first in range(0, n_prompts, step):
        prompts = slice(first, min(first + step, n_prompts))
        with torch.no_grad():
            _, cache = model.run_with_cache(runs.there[prompts], names_filter=list(names))
        there = {name: cache[name].detach() for name in names}
        tape = _Tape(model.cfg.n_layers, names, dropping)
        with torch.enable_grad():
            score = _score(model, runs.here[prompts], metric, prompts, tape).sum()
            if not score.requires_grad:
                raise ModelError(
                    f"metric {metric.name!r} has no gradient at {names[0]} and {len(names) - 1} "
                    "more hook points; give a differentiable metric of what comes after them"
                )
            gradients = tape.gradients(score)
        here = {name: value.detach() for name, value in tape.found.items()}
        yield Slopes(prompts, here, there, gradients)


def _score(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    metric: Metric,
    prompts: slice,
    tape: "_Tape",
) -> Tensor:
    logits = model.run_with_hooks(tokens, fwd_hooks=tape.hooks())
    read = logits[:, metric.reads(tokens.shape[1])]
    if metric.columns is not None:
        read = read[..., metric.columns.to(read.device)]
    return metric.score(read, torch.arange(prompts.start, prompts.stop, device=read.device))


class _Tape:
    """Activations with their graph, and gates that a gradient can be kept from passing."""

    def __init__(self, n_layers: int, names: Sequence[str], dropping: bool) -> None:
        self.names, self.layers = list(names), range(n_layers) if dropping else ()
        self.gates = {f"blocks.{layer}.{write}": layer for layer in self.layers for write in WRITES}
        self.found: dict[str, Tensor] = {}
        self.closed = -1

    def hooks(self) -> list:
        return [(name, self._keeping(name)) for name in dict.fromkeys([*self.names, *self.gates])]

    def gradients(self, score: Tensor) -> list[dict[str, Tensor]]:
        """One backward pass, or one for every layer that is dropped."""
        passes = list(self.layers) or [-1]
        found = []
        values = [self.found[name] for name in self.names]
        for self.closed in passes:
            last = self.closed == passes[-1]
            slopes = torch.autograd.grad(score, values, retain_graph=not last, allow_unused=True)
            found.append(
                {
                    name: torch.zeros_like(value) if slope is None else slope
                    for name, value, slope in zip(self.names, values, slopes, strict=True)
                }
            )
        return found

    def _keeping(self, name: str):
        def keep(value: Tensor, point: object) -> Tensor:
            if not value.requires_grad:  # frozen weights, or a model that has none
                value = value.detach().requires_grad_()
            if name in self.names:
                self.found[name] = value
            return self._gated(value, self.gates[name]) if name in self.gates else value

        return keep

    def _gated(self, value: Tensor, layer: int) -> Tensor:
        # A view of its own, so that the gradient is stopped behind what was kept.
        passed = value.view_as(value)
        passed.register_hook(lambda slope: slope * 0 if self.closed == layer else None)
        return passed
