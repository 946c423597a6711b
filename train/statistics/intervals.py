"""95 % intervals of shares, means and ratios measured on few prompts, all in closed form.

* A share of prompts: Wilson 1927, which stays inside [0, 1] and is also valid at 0 and at 1.
* A difference of two shares of the same cases: Newcombe 1998 (Statist. Med. 17, 2635, method 10),
  which joins the two Wilson intervals by the correlation of the answers.
* A mean: each end is the more cautious of two. Student's t is exact for normal scores and cautious
  for symmetric heavy tails, but covers the mean of skewed scores too rarely (89 % for 10
  exponential scores). Hall's cubic transformation of t (1992, J. R. Statist. Soc. B 54, 221, eq.
  2.1) corrects for skewness, but mistakes the outliers of heavy tails for skewness (93 % coverage
  for 10 to 64 scores of t(3)).
* A ratio of means: Fieller 1954, which accounts for the uncertainty of the denominator, widened by
  what Hall's correction adds for the skewness of part - ratio * whole.
* A rare effect, which most prompts do not show: if more than half of the scores lie within 5 % of
  the range from their median, and at most 15 do not, each end also reaches as far as Wilson's
  interval of a share that is scaled to the range of the scores. Of all scores with this range and
  mean, those that take only its two ends vary most. Student's t alone covers such means in 40 to
  90 % of cases at 10 prompts.
* Scores that are equal on every prompt have no interval: n equal scores only say that at most
  1 - 0.05^(1/n) of all prompts differ (26 % for n = 10, 4.6 % for n = 64), not by how much. Nor has
  a ratio whose numerator is 0 on all prompts but one: a single prompt does not show how much the
  effect varies where it occurs (81 % coverage for exponential effects on a fifth of 10 prompts).

`benchmarks/calibration.py` measures the coverage for each n, distribution and kind: 93 to 97 % from
10 prompts on, for skewness up to 2 and tails as heavy as t(4). The percentile bootstrap, used in
earlier versions, covers 85 to 90 % at 10 prompts and 90 to 94 % at 30.

Limits: With a skewness of 6 (log-normal with sigma 1) the coverage is 89 to 92 % at 10 prompts and
93 to 94 % at 30. Below 10 prompts the interval is right for normal scores only. An effect that none
of the drawn prompts shows cannot be seen: if it occurs on one prompt in ten, 35 % of all draws of
10 prompts contain none, and their interval describes the other prompts. Prompts are assumed to be
independent: sum rows that are not, such as one prompt with several foils, before you compute an
interval. No interval accounts for a choice among several means (`interp.patching.Effects.top`).
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from jaxtyping import Bool, Float


__all__ = [
    "mean_interval",
    "paired_shares_interval",
    "ratio_estimate",
    "ratio_interval",
    "reach",
    "resampled_means",
    "student_interval",
    "wilson",
]

Z = 1.959964  # 97.5 % quantile of the normal distribution
# An effect is rare if more than this share of scores lies within NEAR of the range from the median,
# and at most so many do not. Where more do, Student's t and Hall's correction see them.
NEAR, MOST, FEW = 0.05, 0.5, 15
ROUNDING = 1e-6  # relative difference up to which scores, computed in float32, count as equal


@dataclass(frozen=True)
class Estimate:
    """Number with its 95 % interval, whose ends are None if there are too few cases."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [no interval]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the interval of a share of n independent cases (Wilson 1927); (0, 1) if n is 0.

    Examples:
        >>> [round(end, 3) for end in statistics.wilson(0.9, 50)]
        [0.786, 0.957]
    """
    if n == 0:
        return 0.0, 1.0
    centre = share + Z**2 / (2 * n)
    half = Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def paired_shares_interval(
    first: Bool[np.ndarray, " case"], second: Bool[np.ndarray, " case"]
) -> tuple[float, float]:
    """Return the interval of share(second) - share(first) on the same cases (Newcombe 1998).

    It has a width even if both are right on all cases, or on none; (-1, 1) without cases.

    Examples:
        >>> right = np.arange(50) < 25
        >>> [round(end, 2) for end in statistics.paired_shares_interval(right, ~right)]
        [-0.27, 0.27]
    """
    n = len(first)
    if n == 0:
        return -1.0, 1.0
    before, after = float(first.mean()), float(second.mean())
    (low_1, high_1), (low_2, high_2) = wilson(before, n), wilson(after, n)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_1, only_2 = int((first & ~second).sum()), int((~first & second).sum())
    # Correlation of the answers, corrected for continuity if it is positive.
    product = both * neither - only_1 * only_2
    if product > 0:
        product = max(product - n / 2, 0)
    scale = (both + only_1) * (only_2 + neither) * (both + only_2) * (only_1 + neither)
    phi = product / sqrt(scale) if scale else 0.0

    def apart(one: float, other: float) -> float:
        return sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    difference = after - before
    below = apart(after - low_2, high_1 - before)
    above = apart(high_2 - after, before - low_1)
    return difference - below, difference + above


def mean_interval(scores: Float[np.ndarray, " prompt"]) -> tuple[float, float] | None:
    """Return the interval of the mean score.

    None with fewer than two prompts, and if the scores are equal on every prompt. If three or more
    scores take only two distinct values, their mean is a share in other units and gets Wilson's
    interval.

    Examples:
        >>> [round(end, 2) for end in statistics.mean_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))]
        [1.04, 4.96]
    """
    if len(scores) < 2:
        return None
    values = np.unique(scores)
    if values[-1] - values[0] <= ROUNDING * np.abs(values).max():
        return None
    if len(values) == 2 < len(scores):
        bottom, top = float(values[0]), float(values[1])
        low, high = wilson(float((scores == top).mean()), len(scores))
        return bottom + low * (top - bottom), bottom + high * (top - bottom)
    mean = scores.mean()
    below, above = _reach_of_scores(scores[None] - mean)
    return float(mean - below[0]), float(mean + above[0])


def student_interval(scores: Float[np.ndarray, " prompt"]) -> tuple[float, float]:
    """Return Student's interval of the mean of at least two scores; of equal scores, a point.

    A ratio of means has an interval (`ratio_interval`) if that of its denominator excludes 0.

    Examples:
        >>> [round(end, 2) for end in statistics.student_interval(np.array([1.0, 2.0, 3.0]))]
        [-0.48, 4.48]
    """
    n = len(scores)
    error = np.array([scores.std(ddof=1) / sqrt(n)])
    half = float(reach(error, np.zeros(1), n)[0][0])  # without skewness the reach is Student's
    return float(scores.mean()) - half, float(scores.mean()) + half


def ratio_interval(
    part: Float[np.ndarray, "*places prompt"],
    whole: Float[np.ndarray, " prompt"],
) -> tuple[Float[np.ndarray, "*places"], Float[np.ndarray, "*places"]] | None:
    """Return the interval of mean(part) / mean(whole) for each place, that is, each component.

    Takes 0.1 s for 20,000 places and 64 prompts.

    Args:
        part: Numerator by place and prompt: how much patching a component changed the score.
        whole: Denominator by prompt: the difference between the clean and the corrupt score.

    Returns:
        Lower and upper ends; nan for places whose ratio is the same on every prompt, or of which
        one of three or more prompts alone shows any effect. None with fewer than two prompts, or if
        the mean of `whole` cannot be told from 0 (Student's t at 95 %), because then every ratio is
        compatible with the data.

    Examples:
        >>> whole = np.array([3.0, 4.0, 5.0, 4.0, 4.0])
        >>> part = np.array([[1.0, 2.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
        >>> low, high = statistics.ratio_interval(part, whole)
        >>> (low < 0.5).tolist(), np.isnan(high).tolist()
        ([True, False], [False, True])
    """
    n = len(whole)
    if n < 2:
        return None
    unit_reach = reach(np.ones(1), np.zeros(1), n)[0]
    quantile = float(unit_reach[0])  # Student's
    part_mean, whole_mean = part.mean(axis=-1), whole.mean()
    parts, wholes = part - part_mean[..., None], whole - whole_mean
    # Variances and covariance of the means, each multiplied by quantile^2.
    unit = quantile**2 / (n * (n - 1))
    whole_var = unit * (wholes @ wholes)
    if whole_mean**2 <= whole_var:
        return None
    covariance, part_var = unit * (parts @ wholes), unit * (parts**2).sum(axis=-1)
    # Fieller's ends are the roots r of (part_mean - r whole_mean)^2 = quantile^2 * variance of
    # (part_mean - r whole_mean), that is, of leading r^2 - 2 middle r + part_mean^2 - part_var = 0.
    leading = whole_mean**2 - whole_var
    middle = part_mean * whole_mean - covariance
    inside = middle**2 - leading * (part_mean**2 - part_var)
    # Rounding can make the discriminant negative when part is proportional to whole.
    half = np.sqrt(np.maximum(inside, 0.0)) / leading
    ratio = part_mean / whole_mean
    residual = (parts - ratio[..., None] * wholes) / whole_mean
    below, above = _reach_of_scores(residual)
    plain = quantile * _moments(residual)[0]
    low = middle / leading - half - (below - plain)
    high = middle / leading + half + (above - plain)
    same = np.ptp(residual, axis=-1) <= ROUNDING * np.abs(part / whole_mean).max(axis=-1)
    size = np.abs(part)
    alone = ((size > ROUNDING * size.max(axis=-1, keepdims=True)).sum(axis=-1) == 1) & (n > 2)
    refused = same | alone
    return np.where(refused, np.nan, low), np.where(refused, np.nan, high)


def ratio_estimate(
    part: Float[np.ndarray, " prompt"], whole: Float[np.ndarray, " prompt"]
) -> Estimate:
    """Return mean(part) / mean(whole) with its interval, if it has one (`ratio_interval`).

    Examples:
        >>> part, whole = np.array([1.0, 2.0, 3.0, 2.0]), np.array([3.0, 4.0, 5.0, 4.0])
        >>> str(statistics.ratio_estimate(part, whole))
        '0.500 [0.259, 0.623]'
    """
    value, bounds = float(part.sum() / whole.sum()), ratio_interval(part[None], whole)
    if bounds is None or np.isnan(bounds[0][0]):
        return Estimate(value, None, None)
    return Estimate(value, float(bounds[0][0]), float(bounds[1][0]))


def resampled_means(
    scores: Float[np.ndarray, "*places prompt"], *, draws: int = 1000, seed: int = 0
) -> Float[np.ndarray, "*places draw"]:
    """Return means over prompts drawn with replacement (bootstrap), the same draw for every place.

    Use it for the stability of rankings and circuits, which has no closed form. Its percentiles are
    too narrow as an interval of a mean; see the module docstring.

    Examples:
        >>> statistics.resampled_means(np.array([1.0, 2.0, 3.0]), draws=500).shape
        (500,)
    """
    n_prompts = scores.shape[-1]
    generator = np.random.Generator(np.random.Philox(key=seed))
    weights = generator.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=draws)
    return scores @ (weights.T / n_prompts)


def reach(
    error: Float[np.ndarray, "*places"],
    skewness: Float[np.ndarray, "*places"],
    n: int,
    *,
    confidence: float = 0.95,
) -> tuple[Float[np.ndarray, "*places"], Float[np.ndarray, "*places"]]:
    """Return how far intervals extend below and above means of n scores.

    Each distance is the larger of those of Student's t and of Hall's transformation.

    Args:
        error: Standard errors of the means.
        skewness: Skewness of the scores: third central moment / second central moment^1.5.
        n: Number of scores in each mean.
        confidence: Coverage of the interval; the two tails outside it are equally likely.

    Examples:
        >>> below, above = statistics.reach(np.array([0.5]), np.array([0.0]), 10)
        >>> round(below.item(), 2), round(above.item(), 2)
        (1.13, 1.13)
    """
    # Imported here because scipy takes a third of a second, and `interp.behaviours` imports this
    # module.
    from scipy.special import stdtrit

    student, root = float(stdtrit(n - 1, 0.5 + confidence / 2)), sqrt(n)
    # At skewness 0 the inverse transformation is 0 / 0; its limit is Student's t.
    skewness = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)

    def turned_back(t: float) -> Float[np.ndarray, "*places"]:
        """Invert Hall's transformation: solve x + g x^2 / 3 + g^2 x^3 / 27 + g / 6n = t / sqrt(n).

        g is the skewness, and x is (mean - truth) / standard deviation. Returns x sqrt(n), which is
        in units of the standard error like t.
        """
        cube = 1 + skewness * (t / root - skewness / (6 * n))
        return root * 3 / skewness * (np.cbrt(cube) - 1)

    below = error * np.maximum(student, turned_back(student))
    above = error * np.maximum(student, -turned_back(-student))
    return below, above


def _reach_of_scores(
    deviations: Float[np.ndarray, "*places prompt"],
) -> tuple[Float[np.ndarray, "*places"], Float[np.ndarray, "*places"]]:
    """Return how far intervals extend below and above means, from the scores minus their means.

    Where most scores are nearly equal, the reach is at least that of Wilson's interval, scaled to
    the range of the scores.
    """
    below, above = reach(*_moments(deviations))
    n, lowest = deviations.shape[-1], deviations.min(axis=-1)
    span = deviations.max(axis=-1) - lowest
    middle = np.median(deviations, axis=-1, keepdims=True)
    near = np.abs(deviations - middle) <= NEAR * span[..., None]
    n_near = near.sum(axis=-1)
    rare = (n_near > MOST * n) & (n_near >= n - FEW) & (span > 0)
    # The mean as a share: where it lies between the lowest and the highest score.
    share = np.divide(-lowest, span, out=np.zeros_like(span), where=rare)
    root = Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    centre, scale = share + Z**2 / (2 * n), 1 + Z**2 / n
    low, high = np.maximum(0.0, (centre - root) / scale), np.minimum(1.0, (centre + root) / scale)
    below = np.where(rare, np.maximum(below, (share - low) * span), below)
    above = np.where(rare, np.maximum(above, (high - share) * span), above)
    return below, above


def _moments(
    deviations: Float[np.ndarray, "*places prompt"],
) -> tuple[Float[np.ndarray, "*places"], Float[np.ndarray, "*places"], int]:
    """Return standard error, skewness and n of centred scores, the arguments of `reach`."""
    n = deviations.shape[-1]
    squares = deviations**2
    second, third = squares.mean(axis=-1), (squares * deviations).mean(axis=-1)
    skewness = np.divide(third, second**1.5, out=np.zeros_like(third), where=second > 0)
    return np.sqrt(second / (n - 1)), skewness, n
