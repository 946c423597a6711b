"""Scores of patched runs: the finished result, and the buffer that collects it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InterruptedWarning
from interp.patching.engine.base_run import BaseRun
from train.short_repr import short_repr


__all__ = ["Found", "Patched", "averaged", "spread"]


@dataclass(frozen=True, eq=False)
class Patched:
    """Scores of patched runs.

    Attributes:
        scores: One score per metric, patch and prompt.
        start: Scores of the unpatched run.
        done: True for patches that were run; the scores of the others are nan, after Ctrl-C.
        moved: Largest absolute difference between the values patched in and those replaced. If it
            is 0, an effect of 0 says nothing about the component.
        peak_bytes: Largest memory held above the weights, computed from tensor shapes.
    """

    scores: Float[Tensor, "metric patch prompt"]
    start: Float[Tensor, "metric prompt"]
    done: Bool[Tensor, " patch"]
    moved: Float[Tensor, " patch"]
    peak_bytes: int

    __repr__ = short_repr


def averaged(found: Sequence[Patched]) -> tuple[Patched, int]:
    """Return the mean over finished draws, and how many there are.

    If Ctrl-C was pressed during the first draw, return what was finished of that draw.
    """
    whole = [one for one in found if one.done.all()] or list(found)
    mean = Patched(
        scores=torch.stack([one.scores for one in whole]).mean(dim=0),
        start=torch.stack([one.start for one in whole]).mean(dim=0),
        done=whole[0].done,
        moved=torch.stack([one.moved for one in whole]).amax(dim=0),
        peak_bytes=max(one.peak_bytes for one in whole),
    )
    return mean, len(whole)


def spread(found: Patched, indices: Sequence[int], n_patches: int) -> Patched:
    """Insert the results at `indices` among `n_patches` patches; the others change nothing."""
    scores = found.start[:, None].expand(-1, n_patches, -1).clone()
    # Infinite: nothing was compared there, so an effect of 0 does not come from equal values.
    scores[:, list(indices)] = found.scores
    done, moved = (
        torch.ones(n_patches, dtype=torch.bool),
        torch.full((n_patches,), float("inf"), dtype=torch.float32),
    )
    done[list(indices)], moved[list(indices)] = found.done, found.moved
    return Patched(scores, found.start, done, moved, found.peak_bytes)


class Found:
    """Buffer of scores, filled chunk by chunk and slab by slab."""

    def __init__(self, n_metrics: int, n_patches: int, n_prompts: int) -> None:
        self.scores = torch.full(
            (n_metrics, n_patches, n_prompts), float("nan"), dtype=torch.float64
        )
        self.start = torch.full((n_metrics, n_prompts), float("nan"), dtype=torch.float64)
        self.here = torch.zeros(n_patches, dtype=torch.bool)
        self.moved = torch.zeros(n_patches, dtype=torch.float32)
        self.peak_bytes = 0

    @property
    def in_slab(self) -> int:
        return int(self.here.sum())

    def put(self, indices: list[int], slab: slice, values: Tensor, moved: Tensor) -> None:
        self.scores[:, indices, slab] = values.double().cpu()
        self.moved[indices] = torch.maximum(self.moved[indices], moved.float().cpu())
        self.here[indices] = True

    def note_bytes(self, base: BaseRun, beside: int) -> None:
        held = sum(value.nbytes for value in (*base.cache.values(), base.final))
        self.peak_bytes = max(self.peak_bytes, held + beside)

    def next_slab(self) -> None:
        self.here = torch.zeros_like(self.here)

    def whole(self) -> Patched:
        done = torch.ones_like(self.here)
        return Patched(self.scores, self.start, done, self.moved, self.peak_bytes)

    def interrupted(self, in_the_last_slab: bool) -> Patched:
        """Return the patches that are finished for every prompt, with an `InterruptedWarning`.

        A patch is finished only if the last slab has it too. Raises KeyboardInterrupt if there is
        none.
        """
        done = self.here if in_the_last_slab else torch.zeros_like(self.here)
        if not done.any():
            raise KeyboardInterrupt
        warnings.warn(
            f"interrupted: {int(done.sum())} of {len(done)} patches were run, the others are nan",
            InterruptedWarning,
            stacklevel=4,
        )
        self.scores[:, ~done] = float("nan")
        return Patched(self.scores, self.start, done, self.moved, self.peak_bytes)
