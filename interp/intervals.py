"""How far a number measured on a few prompts can be off.

Two intervals, both 95 %: Wilson's for a share of prompts (it stays inside [0, 1] and is honest at 0
and at 1, where the textbook one has no width), and a bootstrap over prompts for anything else. One
prompt drawn again is the same prompt, so below two the bootstrap has nothing to say and is None.
"""

from math import sqrt

import numpy as np
from jaxtyping import Float


__all__ = ["mean_interval", "ratio_interval", "resampled_means", "wilson"]

Z = 1.959964  # 97.5 % quantile of the normal distribution


def wilson(share: float, n: int) -> tuple[float, float]:
    """Interval of a share observed on n independent cases (Wilson 1927); (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    centre = share + Z**2 / (2 * n)
    half = Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def resampled_means(
    scores: Float[np.ndarray, "*places prompt"], *, draws: int = 1000, seed: int = 0
) -> Float[np.ndarray, "*places draw"]:
    """Means over prompts drawn with replacement; the same prompts are drawn for every place."""
    n_prompts = scores.shape[-1]
    generator = np.random.Generator(np.random.Philox(key=seed))
    weights = generator.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=draws)
    return scores @ (weights.T / n_prompts)


def mean_interval(
    scores: Float[np.ndarray, " prompt"], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the mean when prompts are drawn again; None below two prompts."""
    if len(scores) < 2:
        return None
    low, high = np.quantile(resampled_means(scores, draws=draws, seed=seed), [0.025, 0.975])
    return float(low), float(high)


def ratio_interval(
    part: Float[np.ndarray, "*places prompt"],
    whole: Float[np.ndarray, " prompt"],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*places"], Float[np.ndarray, "*places"]] | None:
    """The same for mean(part) / mean(whole), place by place."""
    if len(whole) < 2:
        return None
    ratio = resampled_means(part, draws=draws, seed=seed) / resampled_means(
        whole, draws=draws, seed=seed
    )
    low, high = np.quantile(ratio, [0.025, 0.975], axis=-1)
    return np.asarray(low), np.asarray(high)
