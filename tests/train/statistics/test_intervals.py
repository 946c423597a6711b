"""Intervals contain what they should, as often as they say."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from tests.worlds.known import known
from train.statistics import (
    Average,
    mean_interval,
    ratio_estimate,
    ratio_interval,
    resampled_means,
    wilson,
)


def test_wilson_gives_the_published_values():
    # Brown, Cai & DasGupta 2001: at 0 of n the interval is [0, z^2 / (n + z^2)].
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_symmetric_scores_get_students_interval():
    scores = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    expected = stats.t.interval(0.95, 4, loc=0.0, scale=stats.sem(scores))
    assert mean_interval(scores) == pytest.approx(expected, abs=1e-5)


def test_the_longer_tail_gets_the_longer_arm_and_the_other_arm_stays_students():
    scores = np.array([0.0, 0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 4.0])
    low, high = known(mean_interval(scores))
    plain = stats.t.interval(0.95, 7, loc=scores.mean(), scale=stats.sem(scores))
    assert low == pytest.approx(plain[0])
    assert high > plain[1] + 0.1
    assert mean_interval(-scores) == pytest.approx((-high, -low))


def test_an_interval_moves_and_stretches_with_its_scores():
    scores = np.random.default_rng(0).exponential(size=12)
    low, high = known(mean_interval(scores))
    assert mean_interval(3.0 * scores + 5.0) == pytest.approx((3 * low + 5, 3 * high + 5))


def test_scores_of_two_values_are_a_share_in_other_units():
    low, high = wilson(0.75, 20)
    assert mean_interval(np.repeat([2.0, 4.0], [5, 15])) == pytest.approx(
        (2 + 2 * low, 2 + 2 * high)
    )


def test_a_whole_that_does_not_vary_makes_the_ratio_a_mean():
    part = np.random.default_rng(1).exponential(size=(3, 15))
    low, high = known(ratio_interval(part, np.full(15, 2.0)))
    for row, bottom, top in zip(part, low, high, strict=True):
        assert (bottom, top) == pytest.approx(mean_interval(row / 2.0))


def test_the_ratio_is_fiellers_where_the_residual_has_no_skewness():
    whole = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0])
    part = 0.5 * whole + np.array([1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0])
    low, high = known(ratio_interval(part[None], whole))
    # Fieller: the ratios at which part - ratio * whole is not told from 0 by Student's t.
    for end in (low[0], high[0]):
        _, p = stats.ttest_1samp(part - end * whole, 0.0)
        assert p == pytest.approx(0.05, abs=1e-6)


def test_equal_prompts_have_no_interval():
    """An effect of 1 on one prompt in ten is 0 on all of 10 prompts in 35 % of draws."""
    whole = np.array([1.0, 3.0, 2.0, 2.5, 3.5])
    few = [0.0, 0.0, 0.0, 0.5, 1.0]
    part = np.stack([0.7 * whole, np.zeros(5), np.float32(0.98) * whole, few])
    low, high = known(ratio_interval(part, whole))
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, True, True, False]
    assert mean_interval(np.full(5, 1.5)) is None
    assert mean_interval(np.zeros(5)) is None
    assert str(ratio_estimate(part[0], whole)) == "0.700 [no interval]"


def test_means_and_ends_that_are_not_there_are_none_in_a_file_and_read_again():
    gone = float("nan")
    average = Average(
        torch.tensor([0.5, gone]), torch.tensor([gone, gone]), torch.tensor([gone, gone]), n=4
    )
    content = json.loads(json.dumps(average.to_dict(), allow_nan=False))
    assert content == {"values": [0.5, None], "low": [None] * 2, "high": [None] * 2, "n": 4}
    again = Average.from_dict(content)
    for name in ("values", "low", "high"):
        torch.testing.assert_close(getattr(again, name), getattr(average, name), equal_nan=True)


RARE = {
    # Scores, and their probabilities.
    "1 on one prompt in ten": ([0.0, 1.0], [0.9, 0.1]),
    "absent on one prompt in twenty": ([0.98, 0.0], [0.95, 0.05]),
    "half or whole on one in five": ([0.0, 0.5, 1.0], [0.8, 0.1, 0.1]),
    "half or whole on one in ten": ([0.0, 0.5, 1.0], [0.9, 0.05, 0.05]),
    "half or absent on one in five": ([1.0, 0.5, 0.0], [0.8, 0.1, 0.1]),
}


@pytest.mark.parametrize("n", [10, 30, 64])
@pytest.mark.parametrize("kind", RARE)
def test_intervals_of_rare_effects_cover_the_truth_or_are_refused(kind, n):
    """Student's t covers these in 40 to 90 % of cases at 10 prompts."""
    values, probabilities = RARE[kind]
    truth, draw = float(np.dot(values, probabilities)), np.random.default_rng(n)
    scores = draw.choice(values, p=probabilities, size=(2000, n))
    whole = 1 + 0.2 * np.abs(draw.normal(size=n))
    low, high = known(ratio_interval(scores * whole, whole))
    shown = ~np.isnan(low)
    assert (~shown).mean() < 0.78
    truth = (truth * whole).sum() / whole.sum()
    assert ((low <= truth) & (truth <= high))[shown].mean() > 0.93


@pytest.mark.parametrize("n", [10, 30, 64])
def test_an_effect_of_any_size_that_one_prompt_alone_shows_has_no_interval(n):
    """Of exponential effects on a fifth of 10 prompts, 81 % were covered where one showed."""
    draw = np.random.default_rng(n)
    scores = draw.exponential(size=(4000, n)) * (draw.random((4000, n)) < 0.2)
    low, high = known(ratio_interval(scores, np.ones(n)))
    shown = ~np.isnan(low)
    assert (shown == ((scores > 0).sum(axis=1) > 1)).all()
    assert ((low <= 0.2) & (high >= 0.2))[shown].mean() > 0.93


def test_a_rare_effect_is_wider_than_its_spread_says():
    part, whole = np.zeros((1, 30)), np.ones(30)
    part[0, 0], part[0, 1] = 1.0, 0.9
    low, high = known(ratio_interval(part, whole))
    assert low[0] < 0.02
    assert high[0] > 0.2


def test_one_prompt_has_no_interval_and_two_have_a_wide_one():
    assert mean_interval(np.array([1.5])) is None
    assert ratio_interval(np.full((2, 1), 1.5), np.full(1, 3.0)) is None
    # 12.706 standard errors of 0.5.
    assert mean_interval(np.array([1.0, 2.0])) == pytest.approx((-4.853, 7.853), abs=1e-3)


def test_a_share_of_what_cannot_be_told_from_nothing_has_no_interval():
    part = np.ones((2, 6))
    assert ratio_interval(part, np.array([-1.0, 1.0, -2.0, 2.0, 0.5, 0.5])) is None
    assert ratio_interval(part, np.array([1.0, 1.0, 2.0, 2.0, 1.5, 0.5])) is not None


def test_the_same_seed_draws_the_same_prompts():
    scores = np.random.default_rng(0).normal(size=(3, 20))
    np.testing.assert_array_equal(resampled_means(scores), resampled_means(scores))
    assert not np.array_equal(resampled_means(scores), resampled_means(scores, seed=1))


def test_many_places_have_the_intervals_that_each_has_alone():
    draw = np.random.default_rng(0)
    part, whole = draw.normal(size=(200, 64)), draw.normal(3.0, 1.0, 64)
    low, high = known(ratio_interval(part, whole))
    alone = [known(ratio_interval(one[None], whole)) for one in part]
    np.testing.assert_allclose(low, [one[0][0] for one in alone], rtol=1e-12)
    np.testing.assert_allclose(high, [one[1][0] for one in alone], rtol=1e-12)


@pytest.mark.parametrize("n", [10, 30])
def test_ten_skewed_scores_are_covered_as_often_as_two_hundred(n):
    # 1,000 samples: one standard error is 0.7 points. Student's t covers 89 % at 10.
    draw = np.random.default_rng(n)
    held = [
        low <= 1.0 <= high
        for low, high in (known(mean_interval(draw.exponential(size=n))) for _ in range(1000))
    ]
    assert 0.925 <= np.mean(held) <= 0.975


def test_ratios_cover_the_truth_in_about_95_of_100_samples():
    draw = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        whole = draw.normal(4.0, 1.0, size=10)
        part = 0.5 * whole + draw.standard_t(3, size=10)
        low, high = known(ratio_interval(part[None], whole))
        held.append(low[0] <= 0.5 <= high[0])
    assert 0.93 <= np.mean(held) <= 0.975
