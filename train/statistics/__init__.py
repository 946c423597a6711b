"""Means, ratios and shares with 95 % intervals."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.statistics.averages import (
        Average,
        n_prompts,
        over_prompts,
        ratio_of_averages,
        shares,
    )
    from train.statistics.intervals import (
        Estimate,
        Z,
        mean_interval,
        paired_shares_interval,
        ratio_estimate,
        ratio_interval,
        reach,
        resampled_means,
        student_interval,
        wilson,
    )

__all__ = [
    "Average",
    "Estimate",
    "Z",
    "mean_interval",
    "n_prompts",
    "over_prompts",
    "paired_shares_interval",
    "ratio_estimate",
    "ratio_interval",
    "ratio_of_averages",
    "reach",
    "resampled_means",
    "shares",
    "student_interval",
    "wilson",
]

__getattr__ = names_on_first_use(__name__, __file__)
