"""Intervals contain what they should, as often as they say."""

import numpy as np
import pytest

from interp.intervals import mean_interval, ratio_interval, resampled_means, wilson


def test_wilson_gives_the_published_values():
    # Brown, Cai & DasGupta 2001: at 0 of n the interval is [0, z^2 / (n + z^2)].
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_equal_prompts_leave_no_doubt():
    low, high = ratio_interval(np.full((2, 5), 1.5), np.full(5, 3.0))
    np.testing.assert_allclose([low, high], 0.5)


def test_one_prompt_has_no_interval():
    assert mean_interval(np.array([1.5])) is None
    assert ratio_interval(np.full((2, 1), 1.5), np.full(1, 3.0)) is None
    assert mean_interval(np.array([1.0, 2.0])) == (1.0, 2.0)


def test_the_same_seed_draws_the_same_prompts():
    scores = np.random.default_rng(0).normal(size=(3, 20))
    np.testing.assert_array_equal(resampled_means(scores), resampled_means(scores))
    assert not np.array_equal(resampled_means(scores), resampled_means(scores, seed=1))


def test_the_bootstrap_covers_the_truth_in_about_95_of_100_samples():
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        whole = draw.normal(4.0, 1.0, size=60)
        part = 0.5 * whole + draw.normal(0.0, 1.0, size=60)
        low, high = ratio_interval(part[None], whole, draws=400, seed=seed)
        covered += bool(low[0] <= 0.5 <= high[0])
    assert 0.88 <= covered / 200 <= 0.99
