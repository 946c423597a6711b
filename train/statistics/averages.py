"""Means and shares over prompts, with 95 % intervals.

A prompt with several foils is one case: rows that share a prompt are summed before the interval is
computed (`train.statistics.intervals`). With fewer than two prompts there is no interval. Shares
of prompts get Wilson's interval, which is also valid at 0 and at 1.
"""

from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from train import storage
from train.short_repr import short_repr
from train.statistics.intervals import ratio_interval, wilson


__all__ = ["Average", "n_prompts", "over_prompts", "ratio_of_averages", "shares"]


@dataclass(frozen=True, eq=False)
class Average:
    """Means over prompts, in any shape, with their 95 % intervals.

    Attributes:
        values: Means.
        low: Lower ends of the intervals; None with fewer than two prompts; nan for means of scores
            that are the same on every prompt.
        high: Upper ends of the intervals; None and nan as the lower ends.
        n: Number of distinct prompts.
    """

    values: Float[Tensor, "*axes"]
    low: Float[Tensor, "*axes"] | None
    high: Float[Tensor, "*axes"] | None
    n: int

    __repr__ = short_repr

    def at(self, *index: int | list[int] | EllipsisType) -> "Average":
        """Return the mean, or the means, at an index."""
        if self.low is None or self.high is None:
            return Average(self.values[index], None, None, self.n)
        return Average(self.values[index], self.low[index], self.high[index], self.n)

    def columns(self, name: str) -> dict[str, list]:
        """Return flattened columns `name`, `name_low` and `name_high` for a table."""
        parts = {name: self.values, f"{name}_low": self.low, f"{name}_high": self.high}
        n = self.values.numel()
        return {key: [None] * n if t is None else t.flatten().tolist() for key, t in parts.items()}

    def show(self, digits: int = 3) -> str:
        """Format a single mean with its interval: `0.412 [0.380, 0.451]`."""
        value = f"{self.values.item():.{digits}f}"
        if self.low is None or self.high is None:
            return f"{value} [one prompt, no interval]"
        if self.low.isnan().item():
            return f"{value} [the same on all {self.n} prompts]"
        return f"{value} [{self.low.item():.{digits}f}, {self.high.item():.{digits}f}]"

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        parts = {name: getattr(self, name) for name in ("values", "low", "high")}
        return {**{key: None if t is None else _plain(t) for key, t in parts.items()}, "n": self.n}

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Average":
        """Build the average from what `to_dict` returned."""
        parts = {
            name: None if content[name] is None else _tensor(np.array(content[name], dtype=float))
            for name in ("low", "high")
        }
        return cls(_tensor(np.array(content["values"], dtype=float)), **parts, n=content["n"])


def over_prompts(
    scores: Float[np.ndarray, "*axes row"], prompts: Int64[np.ndarray, " row"]
) -> Average:
    """Return the mean over rows, with an interval that takes prompts as cases.

    `prompts` is the index of each row's prompt, counted from 0 without gaps (`n_prompts`).

    Examples:
        >>> average = statistics.over_prompts(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]))
        >>> average.values.item(), average.n
        (3.0, 2)
    """
    member = (prompts[:, None] == np.arange(prompts.max() + 1)).astype(np.float64)
    return ratio_of_averages(scores.astype(np.float64) @ member, member.sum(axis=0))


def ratio_of_averages(
    part: Float[np.ndarray, "*axes case"], whole: Float[np.ndarray, " case"]
) -> Average:
    """Return sum(part) / sum(whole) with its interval over cases.

    Without an interval if there are fewer than two cases, or if the mean of `whole` cannot be told
    from 0.

    Examples:
        >>> part, whole = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
        >>> statistics.ratio_of_averages(part, whole).values.item()
        0.5
    """
    value, n = part.sum(axis=-1) / whole.sum(), len(whole)
    bounds = ratio_interval(part.reshape(-1, n), whole)
    if bounds is None:
        return Average(_tensor(value), None, None, n)
    low, high = (_tensor(end).reshape(value.shape) for end in bounds)
    return Average(_tensor(value), low, high, n)


def shares(right: Float[np.ndarray, "*axes row"], prompts: Int64[np.ndarray, " row"]) -> Average:
    """Return the share of rows that are 1, with Wilson's interval on the number of prompts.

    Examples:
        >>> share = statistics.shares(np.array([1.0, 1.0, 0.0, 1.0]), np.arange(4))
        >>> share.values.item(), share.n
        (0.75, 4)
    """
    n, found = len(np.unique(prompts)), right.astype(np.float64).mean(axis=-1)
    if n < 2:
        return Average(_tensor(found), None, None, n)
    ends = np.array([wilson(float(share), n) for share in found.flat]).T
    low, high = ends.reshape(2, *found.shape)
    return Average(_tensor(found), _tensor(low), _tensor(high), n)


def n_prompts(tokens: Int[Tensor, "row pos"]) -> Int64[np.ndarray, " row"]:
    """Return for each row the index of its prompt among the distinct ones, counted from 0.

    Examples:
        >>> statistics.n_prompts(torch.tensor([[1, 2], [1, 3], [1, 2]])).tolist()
        [0, 1, 0]
    """
    return tokens.cpu().unique(dim=0, return_inverse=True)[1].numpy()


def _plain(values: Float[Tensor, "*axes"]) -> object:
    """Convert a tensor to nested lists with None for nan, because JSON has no nan."""
    plain = values.numpy().astype(object)
    plain[values.isnan().numpy()] = None
    return plain.tolist()


def _tensor(values: ArrayLike) -> Float[Tensor, "*axes"]:
    return torch.from_numpy(np.array(values, dtype=np.float32))
