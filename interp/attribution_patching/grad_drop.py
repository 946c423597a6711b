"""Activations of two runs, and the gradient of the score in one of them, with GradDrop.

The first-order estimate of patching a component is (donor - receiver) * gradient, summed over the
numbers that the component holds. Two forward passes and one backward pass give it for all
components at once (Nanda 2023,
https://www.neelnanda.io/mechanistic-interpretability/attribution-patching).

GradDrop (Kramar et al. 2024, https://arxiv.org/abs/2403.00745, section 3.1) repeats the backward
pass once per layer, each time with the gradient through that layer's additions to the residual
stream set to zero. If a direct and an indirect effect cancel, dropping one of them shows the other.
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
from train.model import with_gradients
from train.short_repr import short_repr


__all__ = ["Slopes", "along"]

# Tokens per backward pass, whose activations are kept; at least one prompt.
TOKENS = 2048
# What a layer adds to the residual stream.
WRITES = ("hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True, eq=False)
class Slopes:
    """Activations and gradients on a slice of the prompts, by hook name.

    Attributes:
        prompts: The slice of prompts.
        receiver: Activations of the run in which the gradient was taken.
        donor: Activations of the run that is patched in.
        gradients: Gradients of the sum of the scores, one mapping per backward pass.
    """

    prompts: slice
    receiver: Mapping[str, Tensor]
    donor: Mapping[str, Tensor]
    gradients: Sequence[Mapping[str, Tensor]]

    __repr__ = short_repr


def along(
    runs: PairedRuns,
    names: Sequence[str],
    metric: Metric,
    *,
    dropping: bool = False,
) -> Iterator[Slopes]:
    """Yield activations and gradients at hook points, for one slice of the prompts at a time.

    Must not be called in inference mode.

    Args:
        runs: The two runs. The weights of their model collect no gradient.
        names: Hook points. The gradient is 0 at those that the metric does not depend on.
        metric: The differentiable metric whose gradient is taken.
        dropping: Use GradDrop: one backward pass per layer, in order, instead of a single one.

    Raises:
        ModelError: The scores do not depend on any of the hook points; or a layer writes more than
            attention and MLP, as with retention, so that GradDrop would not drop it.
    """
    model = runs.model
    if dropping and getattr(model.cfg, "retention", False):
        raise ModelError(
            "GradDrop drops attention and MLP of a layer, and a layer with retention writes more; "
            "estimate by `--method attribution`, or set grad_drop=False in Python"
        )
    n_prompts, n_pos = runs.receiver.shape
    step = max(TOKENS // n_pos, 1)
    for first in range(0, n_prompts, step):
        prompts = slice(first, min(first + step, n_prompts))
        with torch.no_grad():
            _, cache = model.run_with_cache(runs.donor[prompts], names_filter=list(names))
        donor = {name: cache[name].detach() for name in names}
        tape = _Tape(model.cfg.n_layers, names, dropping)
        with with_gradients(model):
            # A copy, because a tensor made in inference mode cannot be saved for the way back.
            tokens = runs.receiver[prompts].clone()
            score = _score(model, tokens, metric, prompts, tape).sum()
            if not score.requires_grad:
                raise ModelError(
                    f"metric {metric.name!r} has no gradient at {names[0]} and {len(names) - 1} "
                    "more hook points; give a differentiable metric of what comes after them"
                )
            gradients = tape.gradients(score)
        receiver = {name: value.detach() for name, value in tape.found.items()}
        yield Slopes(prompts, receiver, donor, gradients)


def _score(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    metric: Metric,
    prompts: slice,
    tape: "_Tape",
) -> Tensor:
    logits = model.run_with_hooks(tokens, fwd_hooks=tape.hooks())
    return metric.of_logits(logits, torch.arange(prompts.start, prompts.stop, device=logits.device))


class _Tape:
    """Hooks that keep activations with their autograd graph, and gates that can stop a gradient.

    Attributes:
        gates: Layer of each hook point where a gradient can be stopped; empty without GradDrop.
        found: Activations by hook name.
        closed: The layer whose gates stop the gradient in the current backward pass; -1 for none.
    """

    def __init__(self, n_layers: int, names: Sequence[str], dropping: bool) -> None:
        self.names, self.layers = list(names), range(n_layers) if dropping else ()
        self.gates = {f"blocks.{layer}.{write}": layer for layer in self.layers for write in WRITES}
        self.found: dict[str, Tensor] = {}
        self.closed = -1

    def hooks(self) -> list:
        return [(name, self._keeping(name)) for name in dict.fromkeys([*self.names, *self.gates])]

    def gradients(self, score: Tensor) -> list[dict[str, Tensor]]:
        """Run one backward pass, or with GradDrop one per layer, and return the gradients."""
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
        def keep(value: Tensor, hook: object) -> Tensor:
            if not value.requires_grad:  # weights are frozen, or the model has none
                value = value.detach().requires_grad_()
            if name in self.names:
                self.found[name] = value
            return self._gated(value, self.gates[name]) if name in self.gates else value

        return keep

    def _gated(self, value: Tensor, layer: int) -> Tensor:
        # The gate acts on a separate view, downstream of the kept tensor, so that it stops the
        # gradient before it reaches the kept tensor. A component in a dropped layer thus gets 0.
        passed = value.view_as(value)
        passed.register_hook(lambda slope: slope * 0 if self.closed == layer else None)
        return passed
