"""What removing documents did to a question, beside what removing random ones did to it.

Any removal moves every number a little. So the effect of documents is their change *minus the
controls'*, and its interval has two parts: how far the mean over prompts can be off
(`interp.statistics.intervals`), and how far one more removal of random documents would move the
same prompts (Student's prediction interval over the controls, which needs two of them). The two are
taken for independent and join as the root of their squares: between 93 and 98.5 % of effects of
nothing are covered, by simulation of normal ones (tests). An effect is a difference and no ratio,
so no denominator can come near 0 here; `evaluations.removal_curves` divides.

A question that has nothing to do with the documents is *within its noise* when that interval holds
0. With fewer than two controls nobody has seen what chance does: the interval is then over prompts
alone, and whether the effect is noise is not known.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from interp.statistics import mean_interval


__all__ = ["Change", "Effect", "by_prompt"]


def by_prompt(
    values: Shaped[np.ndarray, " row"], prompts: Int64[np.ndarray, " row"]
) -> Float[np.ndarray, " prompt"]:
    """Mean over the rows of each prompt, numbered from 0 (`averages.prompts_of`, `Question.cases`).

    One prompt beside many foils, or asked for several answers, is one case of the behaviour.
    """
    return np.bincount(prompts, weights=values.astype(np.float64)) / np.bincount(prompts)


@dataclass(frozen=True)
class Effect:
    """A change in a question's mean, with its 95 % interval.

    Attributes:
        mean: Change without the documents, minus the mean change of the controls.
        low, high: Over prompts and controls, over prompts alone below two controls, and over
            controls alone with a single prompt; None where there are two of neither.
        noise: How far one more control would move the mean, either way; None below two controls.
        n: Distinct prompts.
        seeds: Controls.
    """

    mean: float
    low: float | None
    high: float | None
    noise: float | None
    n: int
    seeds: int

    @property
    def within_noise(self) -> bool | None:
        """Whether 0 is among what the data allow; None, unknown, below two controls."""
        if self.noise is None or self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Change:
    """What one question answered, by distinct prompt (`by_prompt`).

    Attributes:
        related: Whether the documents were removed for its sake; the others show whether only the
            right thing moved.
        before: Of the full run.
        after: Without the documents.
        controls: Without the random documents of each seed.
    """

    name: str
    unit: str
    related: bool
    before: Float[np.ndarray, " prompt"]
    after: Float[np.ndarray, " prompt"]
    controls: Float[np.ndarray, "seed prompt"]

    @property
    def effect(self) -> Effect:
        """What the documents did to the mean, that random ones do not do."""
        seeds, n = self.controls.shape
        base = self.controls.mean(axis=0) if seeds else self.before
        beyond = self.after - base
        mean, noise = float(beyond.mean()), _noise(self.controls.mean(axis=1))
        over_prompts = mean_interval(beyond)
        if over_prompts is None and noise is None:
            return Effect(mean, None, None, None, n, seeds)
        low, high = over_prompts or (mean, mean)
        below, above = (sqrt(reach**2 + (noise or 0) ** 2) for reach in (mean - low, high - mean))
        return Effect(mean, mean - below, mean + above, noise, n, seeds)

    def row(self) -> dict[str, Any]:
        """Plain values, for tables and JSON."""
        effect = self.effect
        moved = (self.controls - self.before).mean(axis=1)
        return {
            "question": self.name,
            "unit": self.unit,
            "related": self.related,
            "before": float(self.before.mean()),
            "after": float(self.after.mean()),
            "controls": moved.tolist(),
            "effect": effect.mean,
            "low": effect.low,
            "high": effect.high,
            "noise": effect.noise,
            "within noise": effect.within_noise,
            "n": effect.n,
            "seeds": effect.seeds,
        }


def _noise(means: Float[np.ndarray, " seed"]) -> float | None:
    """Half of Student's interval for one more draw beside the mean of these."""
    seeds = len(means)
    if seeds < 2:
        return None
    # Here: scipy takes a third of a second to import.
    from scipy.stats import t

    return float(t.ppf(0.975, seeds - 1) * means.std(ddof=1) * sqrt(1 + 1 / seeds))
