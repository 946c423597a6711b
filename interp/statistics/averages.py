"""Means over prompts, with the interval that belongs to them.

One prompt asked against many foils is one case: rows that share a prompt are summed before the
interval is taken (`interp.statistics.intervals`). Below two prompts there is none. A share of
prompts has Wilson's, which is honest at 0 and at 1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from interp.statistics.intervals import ratio_interval, wilson


__all__ = ["Average", "n_prompts", "over_prompts", "ratio_of_averages", "shares"]


@dataclass(frozen=True, eq=False)
class Average:
    """Means over prompts along any axes.

    Attributes:
        values: The means.
        low: Lower end of the 95 % interval; None below two prompts.
        high: Upper end.
        n: Distinct prompts.
    """

    values: Float[Tensor, "*axes"]
    low: Float[Tensor, "*axes"] | None
    high: Float[Tensor, "*axes"] | None
    n: int

    def at(self, *index: Any) -> "Average":
        """The mean, or the means, at an index."""
        if self.low is None or self.high is None:
            return Average(self.values[index], None, None, self.n)
        return Average(self.values[index], self.low[index], self.high[index], self.n)

    def columns(self, name: str) -> dict[str, list]:
        """Flattened columns `name`, `name_low` and `name_high` of a table."""
        parts = {name: self.values, f"{name}_low": self.low, f"{name}_high": self.high}
        n = self.values.numel()
        return {key: [None] * n if t is None else t.flatten().tolist() for key, t in parts.items()}

    def show(self, digits: int = 3) -> str:
        """One mean as text: `0.412 [0.380, 0.451]`."""
        value = f"{self.values.item():.{digits}f}"
        if self.low is None or self.high is None:
            return f"{value} [one prompt, no interval]"
        return f"{value} [{self.low.item():.{digits}f}, {self.high.item():.{digits}f}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        parts = {name: getattr(self, name) for name in ("values", "low", "high")}
        return {**{key: None if t is None else t.tolist() for key, t in parts.items()}, "n": self.n}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Average":
        """What `to_dict` gave."""
        parts = {
            name: None if content[name] is None else torch.tensor(content[name])
            for name in ("low", "high")
        }
        return cls(torch.tensor(content["values"]), **parts, n=content["n"])


def over_prompts(
    scores: Float[np.ndarray, "*axes row"], prompts: Int64[np.ndarray, " row"]
) -> Average:
    """Mean over rows, with the interval over the prompts (numbered from 0) they belong to."""
    member = (prompts[:, None] == np.arange(prompts.max() + 1)).astype(np.float64)
    return ratio_of_averages(scores.astype(np.float64) @ member, member.sum(axis=0))


def ratio_of_averages(
    part: Float[np.ndarray, "*axes case"], whole: Float[np.ndarray, " case"]
) -> Average:
    """Sum of `part` over sum of `whole`, with the interval over cases."""
    value, n = part.sum(axis=-1) / whole.sum(), len(whole)
    bounds = ratio_interval(part.reshape(-1, n), whole)
    if bounds is None:
        return Average(_tensor(value), None, None, n)
    low, high = (_tensor(end).reshape(value.shape) for end in bounds)
    return Average(_tensor(value), low, high, n)


def shares(right: Float[np.ndarray, "*axes row"], prompts: Int64[np.ndarray, " row"]) -> Average:
    """Share of rows that are 1, with Wilson's interval on the number of distinct prompts."""
    n, found = len(np.unique(prompts)), right.astype(np.float64).mean(axis=-1)
    if n < 2:
        return Average(_tensor(found), None, None, n)
    ends = np.array([wilson(float(share), n) for share in found.flat]).T
    low, high = ends.reshape(2, *found.shape)
    return Average(_tensor(found), _tensor(low), _tensor(high), n)


def n_prompts(tokens: Int[Tensor, "row pos"]) -> Int64[np.ndarray, " row"]:
    """Which distinct prompt each row is, counted from 0."""
    return tokens.cpu().unique(dim=0, return_inverse=True)[1].numpy()


def _tensor(values: Any) -> Float[Tensor, "*axes"]:
    return torch.from_numpy(np.array(values, dtype=np.float32))
