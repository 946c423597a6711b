"""An effect is what documents did beyond what random ones did, as far as the controls tell."""

import numpy as np
import pytest
import torch

from data_attribution.counterfactuals import Change, effect_size
from train.statistics import n_prompts


def change(after, controls, before=0.0):
    after = np.asarray(after, float)
    return Change(
        "q", "nats", True, np.full(len(after), before), after,
        np.asarray(controls, float).reshape(-1, len(after)),
    )  # fmt: skip


def test_what_random_documents_do_is_taken_off():
    found = change([1.0, 2, 3], [[0.5, 0.5, 0.5], [1.5, 1.5, 1.5]], before=7.0).effect
    assert found.mean == pytest.approx(2 - 1)
    assert (found.n, found.seeds) == (3, 2)
    assert change([1.0, 2, 3], [], before=7.0).effect.mean == pytest.approx(2 - 7)


def test_one_prompt_has_the_interval_that_two_controls_give_it():
    assert change([5.0], []).effect.low is None
    found = change([5.0], [[1.0], [2.0], [3.0]]).effect
    half = 4.302653 * 1.0 * np.sqrt(4 / 3)  # Student's with 2 degrees; deviation 1; one more draw
    assert found.noise == pytest.approx(half)
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert found.within_noise
    assert not change([50.0], [[1.0], [2.0], [3.0]]).effect.within_noise


def test_one_control_has_no_spread_so_that_noise_is_unknown():
    """Ten prompts bound the mean, but nobody has seen what a second random removal does."""
    after = np.linspace(-0.2, 0.2, 10)
    for controls in ([], [np.zeros(10)]):
        found = change(after, controls).effect
        assert found.low < 0 < found.high
        assert (found.noise, found.within_noise, found.seeds) == (None, None, len(controls))
        assert change(after, controls).row()["within noise"] is None
    assert change([5.0], [[1.0]]).effect.within_noise is None
    two = change(after, [np.zeros(10), np.full(10, 0.1)]).effect
    assert two.within_noise is True
    assert two.high - two.low > found.high - found.low


def test_rows_of_one_prompt_are_one_case():
    """Three foils of one prompt and one of another: two cases, each its own mean."""
    tokens = torch.tensor([[5, 1], [5, 2], [5, 1], [5, 1]])
    prompts = n_prompts(tokens)
    found = effect_size.by_prompt(np.array([1.0, 10.0, 2.0, 6.0]), prompts)
    assert found.tolist() == [3.0, 10.0]


def test_an_unrelated_question_stays_within_its_noise_as_often_as_it_should():
    """Any removal moves all prompts together by chance; the documents move them no otherwise."""
    draw, held = np.random.default_rng(0), 0
    for _ in range(400):
        controls = draw.standard_normal((4, 1)) + 0.1 * draw.standard_normal((4, 12))
        after = draw.standard_normal() + 0.1 * draw.standard_normal(12)
        held += bool(change(after, controls).effect.within_noise)
    assert 0.93 <= held / 400 <= 0.985
